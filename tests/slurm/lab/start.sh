#!/bin/bash
# Starts a SLURM cluster of $LAB_NODES nodes on this one machine, in $SLURM_LAB, and returns when every node is idle.
# usage: SLURM_LAB=DIR start.sh [OWNER_PID]     needs root; ends by stop.sh, or by itself when process OWNER_PID has gone
#
# Each node has its own network, host name, processes and mounts (namespaces), so a node can lose its power (node.sh crash).
# Each has eight GPUs that do not exist: slurmd wants character devices, no driver needs to be behind them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
. "$here/settings.sh"

claim_network() {  # the bridge's name is the lock: whoever makes it owns 10.213.INDEX.0/24
    local try
    for ((try = 0; try < 200; try++)); do
        LAB_INDEX=$(((($$ + try) % 250) + 1))
        ip link add "$(lab_bridge)" type bridge 2>/dev/null || continue
        printf 'LAB_NODES=%s LAB_DBD=%s LAB_INDEX=%s\n' "$LAB_NODES" "$LAB_DBD" "$LAB_INDEX" > "$SLURM_LAB/lab.state"
        ip addr add "$(lab_net).1/24" dev "$(lab_bridge)"
        ip link set "$(lab_bridge)" up
        return
    done
    ip link add "slab$LAB_INDEX" type bridge   # says why not
}

fill_in() {  # fill_in TEMPLATE: the template with this lab's values
    sed -e "s|@LAB@|$SLURM_LAB|g" -e "s|@CONTROLLER@|$(lab_net).1|g" "$here/$1"
}

write_configuration() {
    local i
    {
        fill_in slurm.conf.in
        fill_in "accounting-$LAB_DBD.conf.in"
        for ((i = 1; i <= LAB_NODES; i++)); do
            echo "NodeName=node$i NodeAddr=$(lab_net).$((10 + i)) Port=6818 Boards=1 SocketsPerBoard=2 CoresPerSocket=48" \
                "ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:a100:8 State=UNKNOWN"
        done
        cat "$here/partitions.conf"
    } > "$SLURM_CONF"
    {
        echo AutoDetect=off
        for ((i = 1; i <= LAB_NODES; i++)); do
            echo "NodeName=node$i Name=gpu Type=a100 File=$SLURM_LAB/dev/nvidia[0-7]"
        done
    } > "$SLURM_LAB/etc/gres.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$(lab_net).1 ctl"
        for ((i = 1; i <= LAB_NODES; i++)); do echo "$(lab_net).$((10 + i)) node$i"; done
    } > "$SLURM_LAB/etc/hosts"
    for ((i = 0; i < 8; i++)); do mknod "$SLURM_LAB/dev/nvidia$i" c 195 "$i"; done
}

in_controller() {  # the daemons listen on the address of their host name: one of their own, so on the bridge alone
    # shellcheck disable=SC2016
    unshare --uts --mount bash -c \
        'hostname ctl; mount --bind "$SLURM_LAB/etc/hosts" /etc/hosts; exec "$@"' - "$@"
}

start_munge() {  # a key and a socket of its own: the machine's munge is not involved
    dd if=/dev/urandom of="$SLURM_LAB/munge/key" bs=1024 count=1 status=none
    chmod 600 "$SLURM_LAB/munge/key"
    munged --key-file="$SLURM_LAB/munge/key" --socket="$SLURM_LAB/munge/sock" --seed-file="$SLURM_LAB/munge/seed" \
        --pid-file="$SLURM_LAB/pid/munged.pid" --log-file="$SLURM_LAB/log/munged.log"
}

start_accounting() {
    local options=(--no-defaults --user=root --datadir="$SLURM_LAB/mysql" --innodb-log-file-size=4M
        --innodb-buffer-pool-size=16M --aria-pagecache-buffer-size=8M --key-buffer-size=1M --performance-schema=OFF
        --innodb-flush-log-at-trx-commit=0)
    mariadb-install-db "${options[@]}" --auth-root-authentication-method=socket --auth-root-socket-user=root \
        --skip-test-db > "$SLURM_LAB/log/mysql-install.log" 2>&1
    setsid mariadbd "${options[@]}" --socket="$SLURM_LAB/mysql/sock" --pid-file="$SLURM_LAB/pid/mariadbd.pid" \
        --skip-networking --innodb-lock-wait-timeout=900 </dev/null > "$SLURM_LAB/log/mariadbd.log" 2>&1 &
    fill_in slurmdbd.conf.in > "$SLURM_LAB/etc/slurmdbd.conf"
    chmod 600 "$SLURM_LAB/etc/slurmdbd.conf"
    wait_for 30 test -S "$SLURM_LAB/mysql/sock"
    MYSQL_UNIX_PORT=$SLURM_LAB/mysql/sock in_controller slurmdbd
    wait_for 30 sacctmgr -n list cluster
    sacctmgr -i add cluster lab > /dev/null
}

all_idle() { [ "$(sinfo -h -p gpu -t idle -o %D)" = "$LAB_NODES" ]; }

if [ -f "$SLURM_LAB/lab.state" ]; then echo "already started: $SLURM_LAB" >&2; exit 1; fi
mkdir -p "$SLURM_LAB"/{etc,log,pid,state,spool,munge,dev}
chmod 755 "$SLURM_LAB" "$SLURM_LAB/munge"   # munged refuses a socket that others cannot reach
claim_network
trap '"$here/stop.sh"' ERR
if [ -n "${1:-}" ]; then
    (while alive "$1"; do sleep 1; done; exec "$here/stop.sh") </dev/null > "$SLURM_LAB/log/guard.log" 2>&1 &
fi
write_configuration
start_munge
if [ "$LAB_DBD" = 1 ]; then start_accounting; fi
in_controller slurmctld -c
wait_for 20 scontrol ping
for ((i = 1; i <= LAB_NODES; i++)); do "$here/node.sh" start "node$i"; done
wait_for 60 all_idle
