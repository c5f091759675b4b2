"""How a worker ends: exit code, kind and message, from what happened. The supervisor decides by these."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fullft_cluster.checkpoints import FencedError
from fullft_cluster.errors import FullftError, UsageError
from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import RunDir, write_json

DONE, FAILED, STOPPED, PERMANENT = 0, 1, 75, 93
"""Exit codes: finished · anything else · stopped on request · a fault that a restart repeats."""

_COMMUNICATION = re.compile(
    r"NCCL|gloo|Connection (reset|refused|closed)|connectFullMesh|ProcessGroup|store.*(timed out|timeout)|Broken pipe|"
    r"wait.*timeout|EADDRINUSE|address already in use",
    re.IGNORECASE,
)
_CPU_OUT_OF_MEMORY = "can't allocate memory"


class DataFault(UsageError):
    """The prepared data is missing, damaged, or not what the run began with."""


class CheckpointFault(UsageError):
    """A committed checkpoint cannot be used by this run as it is set up."""


class NotFiniteError(FullftError):
    """Loss or gradient became NaN or infinite; a restart from the same state computes the same."""


@dataclass
class Progress:
    """How far this worker has come; the exit report is made of it."""

    step: int | None = None
    resumed_from: int | None = None
    committed_step: int | None = None
    finished: str = ""
    """Why training ended before its last step, if it did."""


class ExitReport(Frozen, frozen=True, kw_only=True):
    """One rank's end, as written to exits/attempt-K/rank-R.json."""

    rank: int
    exit_code: int
    kind: str
    """done, stopped, oom, data, config, checkpoint, nan, communication, fenced or other."""
    message: str
    step: int | None
    """Optimizer steps done."""
    resumed_from: int | None
    committed_step: int | None

    def write(self, run: RunDir, attempt: int) -> None:
        """Write the report by rename."""
        directory = run.exits(attempt)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / f"rank-{self.rank}.json", {f: getattr(self, f) for f in self.__struct_fields__})


def classify(error: BaseException) -> tuple[int, str]:
    """Return (exit code, kind) for what ended a worker."""
    fixed: tuple[tuple[type[BaseException], tuple[int, str]], ...] = (
        (FencedError, (FAILED, "fenced")),
        (DataFault, (PERMANENT, "data")),
        (CheckpointFault, (PERMANENT, "checkpoint")),
        (NotFiniteError, (PERMANENT, "nan")),
        (UsageError, (PERMANENT, "config")),
        (FullftError, (FAILED, "other")),
        (ImportError, (PERMANENT, "config")),
        (MemoryError, (FAILED, "oom")),
    )
    for kind, result in fixed:
        if isinstance(error, kind):
            return result
    # By name: torch is not imported here. torch.OutOfMemoryError is a RuntimeError.
    if type(error).__name__ == "OutOfMemoryError" or _CPU_OUT_OF_MEMORY in str(error):
        return FAILED, "oom"
    if type(error).__name__.startswith("Dist") or (
        isinstance(error, RuntimeError | OSError) and _COMMUNICATION.search(str(error))
    ):
        return FAILED, "communication"
    return FAILED, "other"
