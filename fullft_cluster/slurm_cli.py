"""SLURM's own commands, called without a shell. Text output only: `--json` is missing in 20.11 and differs later."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fullft_cluster.errors import Problem, SchedulerError
from fullft_cluster.plan import Frozen

TIMEOUT_SECONDS = 60

FINAL_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States in which a job's life is over (``man squeue``, JOB STATE CODES)."""
_DOWN = re.compile(r"^(down|error|inval)|\*$", re.IGNORECASE)
"""Short states of a node that is lost (``man sinfo``, NODE STATE CODES; ``*``: no response). A draining one is not."""


class JobState(Frozen, frozen=True):
    """One job as the scheduler sees it now."""

    state: str
    """SLURM's long state, such as RUNNING; UNKNOWN where neither squeue nor sacct knows it (which is not "gone")."""
    reason: str = ""
    nodes: str = ""


def _ignore_term() -> None:
    """Run in the child before exec. An ignored signal stays ignored there."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def call(
    command: Sequence[str], *, cwd: Path | None = None, shielded: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> str:
    """Run one of SLURM's commands and return its stdout.

    ``shielded``: it goes on when SLURM ends the job that it runs in. `scontrol requeue` of its own job is sent SIGTERM
    with the whole batch step, often before it has its answer.
    Raises SchedulerError in the command's own words when it is missing, fails or does not answer in time.
    """
    if shutil.which(command[0]) is None:
        raise SchedulerError(
            Problem(
                command[0],
                f"no `{command[0]}` on PATH, so SLURM cannot be reached from here",
                "Run on a login node of the cluster (or `module load slurm`), or use --backend local.",
            )
        )
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",  # a node's Reason is any bytes that an operator typed
            timeout=timeout_seconds,
            check=False,
            preexec_fn=_ignore_term if shielded else None,  # the supervisor has one thread
        )
    except subprocess.TimeoutExpired:
        raise SchedulerError(
            Problem(command[0], f"no answer within {timeout_seconds:.0f} s", "Is slurmctld up? Try `scontrol ping`.")
        ) from None
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise SchedulerError(Problem(command[0], f"refused: {words}"))
    return done.stdout


def try_call(command: Sequence[str], *, shielded: bool = False, timeout_seconds: float = TIMEOUT_SECONDS) -> str | None:
    """Return the stdout, or None when the command is missing or fails: for questions whose answer is optional."""
    try:
        return call(command, shielded=shielded, timeout_seconds=timeout_seconds)
    except SchedulerError:
        return None


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the states of jobs, from squeue while it knows them, from sacct after that. Unknown ones are left out."""
    if not job_ids:
        return {}
    found: dict[str, JobState] = {}
    # squeue fails as a whole on a single unknown id unless there are several; ask for all of ours by -o and filter.
    text = try_call(["squeue", "--noheader", "--states=all", "--jobs", ",".join(job_ids), "-o", "%A|%T|%r|%N"])
    for line in (text or "").splitlines():
        job_id, state, reason, nodes = line.split("|", 3)
        found[job_id] = JobState(state=state, reason="" if reason == "None" else reason, nodes=nodes)
    missing = [job_id for job_id in job_ids if job_id not in found]
    if missing:
        command = ["sacct", "-X", "-n", "-P", "-j", ",".join(missing), "-o", "JobIDRaw,State,NodeList"]
        for line in (try_call(command) or "").splitlines():
            job_id, state, nodes = line.split("|", 2)
            found[job_id] = JobState(state=state.split()[0], nodes=nodes)
    return found


def job_state(job_id: str) -> JobState:
    """Return one job's state; UNKNOWN where the scheduler does not say."""
    return job_states([job_id]).get(job_id, JobState(state="UNKNOWN"))


def job_fields(job_id: str) -> dict[str, str]:
    """Return `scontrol show job` as a dict, empty when the controller does not know the job."""
    text = try_call(["scontrol", "show", "job", "-o", job_id], shielded=True) or ""
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def life_state(job_id: str, life: int) -> str | None:
    """Return the state in which one life of a requeued job ended (0 is the first); None where accounting has none.

    `sacct -D` lists the lives of a job in their order (https://slurm.schedmd.com/sacct.html, --duplicates). Accounting
    lags, so fewer lives than expected say nothing: the last one listed may be an older one.
    """
    text = try_call(["sacct", "-D", "-X", "-n", "-P", "-j", job_id, "-o", "State"], shielded=True)
    states = [line.split()[0] for line in (text or "").splitlines() if line.strip()]
    ended = [state for state in states if state not in ("RUNNING", "PENDING", "COMPLETING")]
    return ended[life] if life < len(ended) else None


def active_jobs() -> frozenset[str]:
    """Return the ids of this user's jobs that wait or run. Raises SchedulerError when the controller does not answer.

    The question whose silence must not be taken for "gone".
    """
    return frozenset(call(["squeue", "--noheader", "--user", str(os.getuid()), "-o", "%A"]).split())


def hostnames(node_list: str) -> tuple[str, ...]:
    """Expand ``node[1-2]``. Raises SchedulerError without scontrol: a guess would make each node a world of its own."""
    return tuple(call(["scontrol", "show", "hostnames", node_list]).split())


def bad_nodes(nodes: Sequence[str]) -> tuple[str, ...]:
    """Return those of the nodes that are down or do not respond."""
    if not nodes:
        return ()
    text = try_call(["sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "-o", "%N|%t"]) or ""
    states = dict(line.split("|", 1) for line in text.splitlines() if "|" in line)
    return tuple(sorted(node for node, state in states.items() if _DOWN.search(state.strip())))
