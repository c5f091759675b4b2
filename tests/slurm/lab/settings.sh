# shellcheck shell=bash
# Settings and small functions shared by start.sh, stop.sh and node.sh. Everything the cluster writes lies in $SLURM_LAB,
# whose path must be short: unix sockets lie below it, and their names end at 108 bytes.
: "${SLURM_LAB:?the directory of the lab}"
PATH=$PATH:/usr/sbin:/sbin
export PATH SLURM_LAB SLURM_CONF=$SLURM_LAB/etc/slurm.conf
# shellcheck source=/dev/null
if [ -f "$SLURM_LAB/lab.state" ]; then . "$SLURM_LAB/lab.state"; fi   # LAB_NODES, LAB_INDEX, LAB_DBD of a running lab
LAB_NODES=${LAB_NODES:-4}
LAB_DBD=${LAB_DBD:-1}            # 1: mariadbd and slurmdbd, so that sacct works
lab_net() { echo "10.213.$LAB_INDEX"; }   # .1 is this machine, on the bridge; .10+i is node i
lab_bridge() { echo "slab$LAB_INDEX"; }

alive() {  # alive PID: exists and is no zombie (in a container PID 1 may reap late, and kill -0 takes zombies for alive)
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
    [ -n "$state" ] && [ "$state" != Z ]
}

stop_pid() {  # stop_pid NAME PIDFILE TENTHS: TERM, wait so long, then KILL
    local pid i
    pid=$(cat "$2" 2>/dev/null) || return 0
    rm -f "$2"
    alive "$pid" || return 0
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < $3; i++)); do alive "$pid" || return 0; sleep 0.1; done
    echo "$1 ($pid) ignored TERM, killed" >&2
    kill -9 "$pid" 2>/dev/null || true
}

wait_for() {  # wait_for SECONDS COMMAND...: until it succeeds
    local end=$((SECONDS + $1))
    shift
    while ((SECONDS < end)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "timed out waiting for: $*" >&2
    return 1
}
