"""What the supervisor needs from where it runs: nodes, a way to start them, the scheduler's view, a requeue."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Protocol

from fullft_cluster import slurm_cli
from fullft_cluster.errors import FullftError, SchedulerError
from fullft_cluster.rundir import RunDir
from fullft_cluster.runtime.node import die_with_parent
from fullft_cluster.runtime.policy import Decision
from fullft_cluster.units import slurm_time_seconds

WARNING_SLACK_SECONDS = 120
"""slurmctld looks at time limits every 30 s and warns up to that much early; the rest is for a slow controller."""

ACCOUNTING_TRIES = 3
"""Looks at accounting, a second apart: slurmdbd hears of an end a moment after slurmctld."""

REQUEUE_TRIES = 12
"""Tries of `scontrol requeue`, ten seconds apart, unless SLURM ends this process first."""


class SupersededError(FullftError):
    """A newer attempt of the run is running, or another supervisor: nothing may be written any more."""


class Child(Protocol):
    """What runs an attempt: a process, or the pods that stand for one."""

    @property
    def returncode(self) -> int | None:
        """Return the exit code once it has ended."""

    def poll(self) -> int | None:
        """Return the exit code once it has ended, else None."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it now."""


class Platform(Protocol):
    """A place where attempts run."""

    def nodes(self) -> tuple[str, ...]:
        """Return the host names of this attempt, in the order of their ranks."""

    def start(self, run: RunDir, attempt: int) -> Child:
        """Start the node starters, one per node, and return what ends when all have."""

    def running(self, run: RunDir, attempt: int) -> Child | None:
        """Return what a supervisor before this one has started, if it outlives its supervisor."""

    def began(self, run: RunDir, attempt: int) -> bool:
        """Return whether an attempt that run.json numbers was started, as far as that can be told."""

    def kill(self, child: Child) -> None:
        """End every worker now."""

    def why(self, signum: int, lead_seconds: int) -> str:
        """Return the reason behind a signal: a member of policy.REQUESTED or ``cancelled``."""

    def life_state(self) -> str | None:
        """Return the scheduler's state of the life that is ending, where it says more than ``running``."""

    def past_life_state(self) -> str | None:
        """Return the scheduler's state of the life before this one."""

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the nodes that are lost."""

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        """Ask for another attempt. Return True when this very process makes it, False when the scheduler starts it.

        Raises SchedulerError when the scheduler refuses.
        """


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


class LocalPlatform:
    """This machine is the only node; a requeue is the next turn of the supervisor's loop."""

    def nodes(self) -> tuple[str, ...]:
        """Return this host."""
        return (socket.gethostname(),)

    def start(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        """Start the node starter as a child, with a rendezvous on a free loopback port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return subprocess.Popen(
            _module("fullft_cluster.runtime.node", "--run", str(run.path), "--attempt", str(attempt)),
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - the supervisor has one thread
            start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone, which asks in good order
        )

    def running(self, run: RunDir, attempt: int) -> Child | None:
        """The workers die with their supervisor."""
        return None

    def began(self, run: RunDir, attempt: int) -> bool:
        """It is started a moment after it is numbered."""
        return True

    def kill(self, child: Child) -> None:
        """Kill the node starter; its workers die with it."""
        child.kill()

    def why(self, signum: int, lead_seconds: int) -> str:
        """USR1 is what a scheduler warns with; TERM and INT end the run until `resume`."""
        return "stop_requested" if signum == signal.SIGUSR1 else "cancelled"

    def life_state(self) -> str | None:
        """There is no scheduler to ask."""
        return None

    def past_life_state(self) -> str | None:
        """There is no scheduler to ask."""
        return None

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """This node runs, or nobody would ask."""
        return ()

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        """Go on in this process."""
        return True


class SlurmPlatform:
    """Inside the batch script of a SLURM job, on the first node of the allocation."""

    def __init__(self) -> None:
        missing = [name for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST") if name not in os.environ]
        if missing:
            raise FullftError(f"{' and '.join(missing)} not set: this is not the batch script of a SLURM job")
        self.job_id = os.environ["SLURM_JOB_ID"]

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes of the allocation."""
        return slurm_cli.hostnames(os.environ["SLURM_JOB_NODELIST"])

    def start(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        """Start one task per node by srun; MASTER_ADDR and MASTER_PORT come from the batch script.

        The node count is the allocation's (`--nodes` in the script is the only place that names it). --wait: when the
        first node ended, the others have a minute to end as well. --kill-on-bad-exit=0: a node that ends with 75 a
        moment before the others must not get them killed while they leave.
        """
        count = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ["SLURM_NNODES"]
        srun = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
        srun += ["--wait=60", "--unbuffered", "--label", "--export=ALL"]
        node = _module("fullft_cluster.runtime.node", "--run", str(run.path), "--attempt", str(attempt))
        return subprocess.Popen([*srun, *node], stdin=subprocess.DEVNULL, start_new_session=True)

    def running(self, run: RunDir, attempt: int) -> Child | None:
        """A step ends with its batch script."""
        return None

    def began(self, run: RunDir, attempt: int) -> bool:
        """It is started a moment after it is numbered."""
        return True

    def kill(self, child: Child) -> None:
        """Have the step killed by SLURM, which reaches every node."""
        slurm_cli.try_call(["scancel", "--signal=KILL", f"{self.job_id}.0"])
        child.terminate()

    def why(self, signum: int, lead_seconds: int) -> str:
        """Ask the controller: preemption and the time limit send the same signal, a requeue and a cancel as well.

        While a job completes, `scontrol show job` says COMPLETING whatever the cause, so its other fields are read.
        """
        fields = slurm_cli.job_fields(self.job_id)
        if fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"):
            return "preempted"
        if signum == signal.SIGUSR1:
            left = _seconds_left(self.job_id)
            soon = left is None or left <= lead_seconds + WARNING_SLACK_SECONDS
            return "time_limit" if soon else "stop_requested"
        if self._requeued(fields) or not fields:
            return "terminated"  # by whom, accounting says when this life has ended
        return "time_limit" if _over_time(fields) else "cancelled"

    def _requeued(self, fields: dict[str, str]) -> bool:
        """Return whether SLURM has requeued this job already: it counts a restart more than this life was told."""
        return int(fields.get("Restarts", "0")) > _restarts()

    def life_state(self) -> str | None:
        """Return the state in which this life ends, where SLURM has decided that already."""
        fields = slurm_cli.job_fields(self.job_id)
        if self._requeued(fields):
            return self._accounted(_restarts())
        state = fields.get("JobState")
        return state if state in slurm_cli.FINAL_STATES else None

    def past_life_state(self) -> str | None:
        """Return how accounting says that the life before this one ended."""
        if not _restarts():
            return None  # a new job of a resumed run
        return self._accounted(_restarts() - 1)

    def _accounted(self, life: int) -> str:
        """Return how accounting says that a life ended; REQUEUED, which it was in any case, where it does not say."""
        for _ in range(ACCOUNTING_TRIES):
            if state := slurm_cli.life_state(self.job_id, life):
                return state
            time.sleep(1)
        return "REQUEUED"

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the nodes that SLURM calls down or not responding."""
        return slurm_cli.bad_nodes(nodes)

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        """Requeue this job, unless SLURM has done so already (NODE_FAIL, preemption, an operator).

        SLURM ends this very process soon after: everything worth keeping is written before.
        """
        for tries_left in reversed(range(REQUEUE_TRIES)):
            if self._requeued(slurm_cli.job_fields(self.job_id)):
                break
            try:
                slurm_cli.call(["scontrol", "requeue", self.job_id], shielded=True)
                break
            except SchedulerError:
                if not tries_left:
                    raise
                time.sleep(10)  # a controller that restarts or fails over is back in a minute or two
        if excluded:
            # Only a pending job takes it, which this one is by now.
            nodes = ",".join(excluded)
            slurm_cli.try_call(["scontrol", "update", f"JobId={self.job_id}", f"ExcNodeList={nodes}"], shielded=True)
        return False


def _restarts() -> int:
    """Return how often this job had been requeued when this life began."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _over_time(fields: dict[str, str]) -> bool:
    """Return whether a job has run as long as it may."""
    try:
        return slurm_time_seconds(fields["RunTime"]) >= slurm_time_seconds(fields["TimeLimit"])
    except (KeyError, ValueError):  # UNLIMITED, or fields of another version
        return False


def _seconds_left(job_id: str) -> int | None:
    """Return the seconds to the job's time limit; None when it has none or squeue does not say."""
    text = slurm_cli.try_call(["squeue", "--noheader", "--jobs", job_id, "-o", "%L"])
    try:
        return slurm_time_seconds((text or "").strip())
    except ValueError:
        return None


def platform_of(backend: str) -> Platform:
    """Return the platform of a backend's name. Raises FullftError for an unknown one."""
    if backend == "slurm":
        return SlurmPlatform()
    if backend == "local":
        return LocalPlatform()
    raise FullftError(f"no supervisor for backend {backend!r}")
