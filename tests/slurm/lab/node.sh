#!/bin/bash
# One node of a running lab. usage: SLURM_LAB=DIR node.sh start|crash|exec NODE [COMMAND...]
#   start: power on     crash: power loss, everything on the node dies at once     exec: run a command on the node
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
. "$here/settings.sh"
command=$1 node=$2
index=${node#node}
pidfile=$SLURM_LAB/pid/init.$node.pid

start_node() {
    local outer inner=
    rm -f "$SLURM_LAB/pid/slurmd.$node.pid"
    setsid unshare --net --uts --pid --mount --fork --mount-proc \
        bash "$here/node-init.sh" "$node" "$(lab_net).$((10 + index))/24" \
        </dev/null >> "$SLURM_LAB/log/init.$node.log" 2>&1 &
    outer=$!
    until [ -n "$inner" ]; do
        alive "$outer" || { echo "$node did not start: $(tail -n 3 "$SLURM_LAB/log/init.$node.log")" >&2; return 1; }
        inner=$(ps -o pid= --ppid "$outer" || true)
        sleep 0.02
    done
    echo $((inner)) > "$pidfile"
    # The same address at each power on, as a real node has: the others' ARP caches would send to the old one for half
    # a minute, and srun would fail with "Communication connection failure".
    ip link add "$(lab_bridge)-$index" type veth peer name eth0 address "02:00:00:00:00:$(printf %02x "$index")" \
        netns $((inner))
    ip link set "$(lab_bridge)-$index" master "$(lab_bridge)" up
}

case $command in
start) start_node ;;
crash)
    kill -9 "$(cat "$pidfile")"
    rm -f "$pidfile" ;;
exec)
    shift 2
    exec nsenter -t "$(cat "$pidfile")" -a "$@" ;;
*)
    echo "unknown command: $command" >&2
    exit 2 ;;
esac
