#!/bin/bash
# fullft-cluster 0.1.0: example
# tiny, 1115264 parameters in 2 processes (cpu): 0.8 of 4.0 GiB a process expected

# Ignored only until the supervisor, which this script becomes, has its own handler: a warning must not kill it.
trap '' USR1

exec /shared/venv/bin/python -m fullft_cluster.runtime.supervisor --run /shared/runs/example --backend local
