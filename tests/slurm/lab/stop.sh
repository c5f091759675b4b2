#!/bin/bash
# Ends a lab by the process ids that it wrote, in order; its logs stay in $SLURM_LAB.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=settings.sh
. "$here/settings.sh"
[ -f "$SLURM_LAB/lab.state" ] || exit 0
rm -f "$SLURM_LAB/lab.state"   # from here on a second stop finds nothing to do
for ((i = 1; i <= LAB_NODES; i++)); do
    kill -9 "$(cat "$SLURM_LAB/pid/init.node$i.pid" 2>/dev/null)" 2>/dev/null   # a namespace dies with its process 1
done
for daemon in slurmctld slurmdbd mariadbd munged; do
    stop_pid "$daemon" "$SLURM_LAB/pid/$daemon.pid" 100
done
ip link del "$(lab_bridge)" 2>/dev/null
exit 0
