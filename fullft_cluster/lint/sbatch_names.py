"""The names of sbatch's options, short and long, so that what a script abbreviates is understood.

From sbatch(1) of SLURM 22.05 with the later --prefer and --tres-per-task: https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

SHORT = {
    "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition", "A": "account", "J": "job-name",
    "o": "output", "e": "error", "G": "gpus", "q": "qos", "C": "constraint", "a": "array", "d": "dependency",
    "x": "exclude", "w": "nodelist", "D": "chdir", "i": "input", "M": "clusters", "m": "distribution", "b": "begin",
    "L": "licenses", "F": "nodefile", "B": "extra-node-info", "S": "core-spec",
}  # fmt: skip
LONG = frozenset(
    """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude exclusive export export-file extra-node-info get-user-env gid gpu-bind gpu-freq
    gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags help hint hold ignore-pbs input job-name
    kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus
    network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
    ntasks-per-socket open-mode output overcommit oversubscribe parsable partition power prefer priority profile
    propagate qos quiet reboot requeue reservation signal sockets-per-node spread-job switches test-only thread-
    spec threads-per-core time time-min tmp tres-per-task uid usage use-min-nodes verbose version wait wait-all-
    nodes wckey wrap
    """.split()  # noqa: SIM905
)


def long_name(name: str) -> str:
    """Return the option that a name stands for: getopt takes any beginning that only one option has."""
    if name in LONG:
        return name
    candidates = [known for known in LONG if known.startswith(name)]
    return candidates[0] if name and len(candidates) == 1 else name
