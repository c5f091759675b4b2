"""Names the cause of an attempt's end and decides what follows. Pure: the same on SLURM, Kubernetes and this machine.

The rules, in order (first match):

1. every worker exited 0                      -> done
2. the user cancelled                         -> stop
3. a worker exited 93 (a restart repeats it)  -> stop
4. the scheduler or the node's state says that a node was lost -> requeue without that node, unless every worker
   stopped on request
5. the workers stopped on request (75), or the scheduler ended them -> requeue; a time limit counts as a failure when
   the attempt committed nothing, as a limit that is shorter than the way to the first checkpoint never ends
6. out of memory at the very step where the attempt before ran out as well -> stop
7. anything else is a failure -> requeue, until `max_failures` in a row brought no newly committed checkpoint

Preemption is unlimited and failure is limited, as in submitit; the count of failures without progress is that of
nvidia-resiliency-ext (`max_no_progress_cycles`), as is the exit code 93.
"""

from __future__ import annotations

from typing import Literal

from fullft_cluster.plan import Frozen

EXIT_DONE = 0
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request with a committed checkpoint."""
EXIT_DO_NOT_REQUEUE = 93

Cause = Literal[
    "done",
    "time_limit",
    "preempted",
    "operator_requeue",
    "stop_requested",
    "terminated",
    "cancelled",
    "node_fail",
    "oom",
    "hang",
    "config",
    "data",
    "checkpoint",
    "nan",
    "fenced",
    "crash",
]
Action = Literal["done", "requeue", "requeue_without_node", "stop"]

SCHEDULER_CAUSES: dict[str, Cause] = {
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "PREEMPTED": "preempted",
    "REQUEUED": "operator_requeue",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "CANCELLED": "cancelled",
    "OUT_OF_MEMORY": "oom",
}
"""SLURM's states (``man squeue``, JOB STATE CODES) that explain an end by themselves."""

_REASONS: tuple[Cause, ...] = ("time_limit", "preempted", "operator_requeue", "stop_requested", "terminated")
REQUESTED: frozenset[str] = frozenset(_REASONS)
"""Ends that somebody asked for: not the run's fault."""


class WorkerExit(Frozen, frozen=True):
    """How one worker ended: its exit code (negative: killed by that signal) and, where it wrote one, its report."""

    rank: int
    node: str
    exit_code: int | None
    """None while nobody saw it end (its node is gone)."""
    kind: str | None = None
    """done, stopped, oom, data, config, checkpoint, nan, communication, fenced, other."""
    message: str = ""
    step: int | None = None


class Evidence(Frozen, frozen=True):
    """What is known about the end of one attempt."""

    workers: tuple[WorkerExit, ...] = ()
    stop_reason: str | None = None
    """Why a stop was asked for, if it was: a member of `REQUESTED`, or ``cancelled``."""
    scheduler_state: str | None = None
    """SLURM's state of the job's life, where it can be had."""
    bad_nodes: tuple[str, ...] = ()
    """Nodes of the attempt that are down or do not respond now."""
    hung: bool = False
    launcher_exit: int | None = None
    """Exit code of srun, or of what starts the node on this machine; None where nobody saw it end."""
    started_from_step: int | None = None
    committed_step: int | None = None
    """The newest committed checkpoint when the attempt ended."""

    @property
    def progressed(self) -> bool:
        """Return whether the attempt committed a newer checkpoint than the one that it started from."""
        return self.committed_step is not None and self.committed_step > (self.started_from_step or 0)


class History(Frozen, frozen=True):
    """What the attempts before leave to remember."""

    failures: int = 0
    """Failures in a row without a newly committed checkpoint."""
    oom_step: int | None = None
    """The step at which the attempt before ran out of memory."""


class Decision(Frozen, frozen=True):
    """What follows, why, and what the next attempt has to remember."""

    action: Action
    cause: Cause
    message: str
    exclude_nodes: tuple[str, ...] = ()
    history: History = History()


def root_of(workers: tuple[WorkerExit, ...]) -> WorkerExit | None:
    """Return the worker that failed first in the sense of cause.

    A worker that lost its peers says ``communication``; it explains nothing while another worker has a fault of its
    own. A worker killed by a signal comes before those that only noticed.
    """
    failed = [w for w in workers if w.exit_code not in (EXIT_DONE, EXIT_STOPPED)]

    def weight(worker: WorkerExit) -> tuple[int, int]:
        if worker.exit_code == EXIT_DO_NOT_REQUEUE:
            return (0, worker.rank)
        if worker.kind not in (None, "communication"):
            return (1, worker.rank)
        if worker.exit_code is not None and worker.exit_code < 0:
            return (2, worker.rank)
        return (3, worker.rank)

    return min(failed, key=weight, default=None)


def describe(worker: WorkerExit) -> str:
    """Return a sentence about how a worker ended."""
    where = f"rank {worker.rank} on {worker.node}"
    if worker.exit_code is None:
        return f"nobody saw how {where} ended: its node or its supervisor was lost"
    if worker.exit_code < 0:
        hint = " (SIGKILL: often the host ran out of memory)" if worker.exit_code == -9 else ""
        return f"{where} was killed by signal {-worker.exit_code}{hint}"
    at = f" at step {worker.step}" if worker.step is not None else ""
    return f"{where} exited {worker.exit_code}{at}: {(worker.message or worker.kind or 'no report').rstrip('.')}"


def _stopped_cause(evidence: Evidence) -> Cause | None:
    """Return the cause when somebody asked for the end, else None."""
    by_scheduler = SCHEDULER_CAUSES.get(evidence.scheduler_state or "")
    asked: Cause | None = next((cause for cause in _REASONS if cause == evidence.stop_reason), None)
    if by_scheduler in REQUESTED:
        # The warning's reason is finer: after our own `scontrol requeue` the scheduler says REQUEUED for any of them.
        # A bare SIGTERM has no reason of its own.
        return by_scheduler if asked in (None, "terminated") else asked
    codes = {worker.exit_code for worker in evidence.workers}
    if EXIT_STOPPED in codes and codes <= {EXIT_DONE, EXIT_STOPPED}:
        return asked or "stop_requested"
    return None


def _failure(evidence: Evidence, history: History, max_failures: int, cause: Cause, message: str) -> Decision:
    """Return requeue or, when the budget is spent, stop."""
    failures = 1 if evidence.progressed else history.failures + 1
    root = root_of(evidence.workers)
    oom_step = root.step if cause == "oom" and root else None
    if cause == "oom" and oom_step is not None and oom_step == history.oom_step:
        return Decision(
            action="stop",
            cause="oom",
            message=f"{message}. It ran out at this very step before: a restart repeats it. Plan with a smaller "
            "resources.micro_batch_size, resources.activation_checkpointing: true, or more GPUs.",
        )
    after = History(failures=failures, oom_step=oom_step)
    if failures > max_failures:
        return Decision(
            action="stop",
            cause=cause,
            message=f"{message}. Given up after {failures} failures in a row without a newly committed checkpoint "
            "(survival.max_failures).",
            history=after,
        )
    return Decision(action="requeue", cause=cause, message=message, history=after)


def decide(evidence: Evidence, history: History, max_failures: int) -> Decision:
    """Return what follows the end of an attempt. See the module's rules."""
    workers = evidence.workers
    root = root_of(workers)
    if workers and all(worker.exit_code == EXIT_DONE for worker in workers):
        said = next((worker.message for worker in evidence.workers if worker.message), "")
        return Decision(action="done", cause="done", message="training finished" + (f": {said}" if said else ""))
    if evidence.stop_reason == "cancelled" or evidence.scheduler_state == "CANCELLED":
        return Decision(action="stop", cause="cancelled", message="cancelled by the user")
    if root is not None and root.exit_code == EXIT_DO_NOT_REQUEUE:
        kinds: tuple[Cause, ...] = ("config", "data", "oom", "checkpoint", "nan", "fenced")
        cause: Cause = next((k for k in kinds if k == root.kind), "crash")
        return Decision(action="stop", cause=cause, message=describe(root))
    codes = {worker.exit_code for worker in workers}
    agreed = EXIT_STOPPED in codes and codes <= {EXIT_DONE, EXIT_STOPPED}  # whatever became of a node since
    if not agreed and (evidence.bad_nodes or SCHEDULER_CAUSES.get(evidence.scheduler_state or "") == "node_fail"):
        lost = ", ".join(evidence.bad_nodes) or "a node of the job"
        return Decision(
            action="requeue_without_node",
            cause="node_fail",
            message=f"lost {lost}",
            exclude_nodes=evidence.bad_nodes,
            history=History(failures=0 if evidence.progressed else history.failures),
        )
    stopped = _stopped_cause(evidence)
    if stopped == "time_limit" and not evidence.progressed:
        return _failure(evidence, history, max_failures, "time_limit", "the time limit came before any new checkpoint")
    if stopped is not None:
        kept = History(failures=0 if evidence.progressed else history.failures)
        return Decision(action="requeue", cause=stopped, message=stopped.replace("_", " "), history=kept)
    message = describe(root) if root else "the workers ended without a word"
    if evidence.launcher_exit and all(worker.exit_code is None for worker in workers):
        message = (
            f"the workers were not started, or died with their nodes (launcher's exit code {evidence.launcher_exit})"
        )
        message += "; logs/supervisor.log has its words"
    if evidence.hung:
        return _failure(evidence, history, max_failures, "hang", "the heartbeat of every worker stood still")
    if (root is not None and root.kind == "oom") or evidence.scheduler_state == "OUT_OF_MEMORY":
        return _failure(evidence, history, max_failures, "oom", message)
    return _failure(evidence, history, max_failures, "crash", message)


def node_exit_code(codes: list[int]) -> int:
    """Return the exit code of one node for its workers' codes: 93 wins, then any failure, then 75, then 0."""
    if EXIT_DO_NOT_REQUEUE in codes:
        return EXIT_DO_NOT_REQUEUE
    if any(code not in (EXIT_DONE, EXIT_STOPPED) for code in codes):
        return 1
    return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
