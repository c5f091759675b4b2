"""How long one attempt of a run may last: ``sbatch --time``, from the forecast and within what a partition allows.

A short limit starts sooner (backfill), a run that meets it is requeued and goes on from its checkpoint.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from fullft_cluster.errors import Problem, UsageError

DEFAULT_SECONDS = 24 * 3600
"""Where neither a forecast nor a limit is known: what most sites allow."""
STARTUP_SECONDS = 900
"""From the start of an attempt to its first step: imports, NCCL, reading weights or a checkpoint. A default."""
MARGIN = 0.1
"""On the forecast's high end: nodes that are slower than the ones that it was learnt from. A default."""
ROUNDED_TO_SECONDS = 600
LEAST_SECONDS = 3600
"""Less is not asked for: it would start no sooner, and a start-up slower than thought would leave no time to train."""
MOST_SECONDS = 10 * 365 * 86400
"""Of a time limit. SLURM counts its minutes in 32 bits; ten years is a slip of the keyboard long before."""


class Hours(Protocol):
    """A forecast of a run's length, in hours."""

    @property
    def low(self) -> float:
        """Return the low end."""

    @property
    def expected(self) -> float:
        """Return the middle."""

    @property
    def high(self) -> float:
        """Return the high end."""


class Attempt(NamedTuple):
    """One attempt's time limit, and what it means."""

    time: str
    """As sbatch takes it."""
    attempts: int
    """Attempts that the run is expected to take."""
    sentence: str


def attempt_time(
    hours: Hours | None, lead_seconds: int, limit_seconds: int | None, *, whose: str = "the partition's limit"
) -> Attempt:
    """Return what to ask for: the forecast's high end and a margin, start-up and lead (an hour at least), or the limit.

    ``lead_seconds``: a step, a checkpoint and a margin, kept free at the end of each attempt. ``limit_seconds``: None
    where there is no limit; ``whose`` says what sets it. Without a forecast a day, or the limit. Raises UsageError for
    a limit in which not even the lead has room.
    """
    if limit_seconds is not None and (problem := too_short(limit_seconds, lead_seconds, whose)):
        raise UsageError(problem)
    most = min(MOST_SECONDS, limit_seconds if limit_seconds is not None else MOST_SECONDS)
    if hours is None:
        time = slurm_time(min(DEFAULT_SECONDS, most))
        return Attempt(
            time, 1, f"--time={time}, as the run's length is not known; a longer run is requeued and goes on"
        )
    needed = (1 + MARGIN) * hours.high * 3600 + STARTUP_SECONDS + lead_seconds
    needed = max(LEAST_SECONDS, math.ceil(needed / ROUNDED_TO_SECONDS) * ROUNDED_TO_SECONDS)
    if needed <= most:
        time = slurm_time(needed)
        return Attempt(time, 1, f"--time={time}: the forecast's high end, {_hours(hours.high)}, start-up and a margin")
    attempts, sentence = requeues(hours, lead_seconds, most)
    return Attempt(slurm_time(most), attempts, f"--time={slurm_time(most)} is {whose}; {sentence}")


def too_short(limit_seconds: int, lead_seconds: int, whose: str) -> Problem | None:
    """Return what is wrong with a limit in which not even the lead has room."""
    if limit_seconds > lead_seconds:
        return None
    what = f"{slurm_time(limit_seconds)}, {whose}, is not longer than the {lead_seconds} s that a step and a checkpoint"
    fix = f"Choose a partition that allows more, and write at least {slurm_time(2 * lead_seconds + 60)}."
    return Problem("slurm.time", f"{what} take before the end", fix)


def requeues(hours: Hours, lead_seconds: int, seconds: int) -> tuple[int, str]:
    """Return how many attempts of so many seconds a run is expected to take, and the requeues in words.

    Each attempt trains between its start-up and its lead; where start-up would take more than half of that, it is taken
    to be half, as models that run in minutes also start in less.
    """
    room = max(1.0, seconds - lead_seconds)
    useful = room - min(STARTUP_SECONDS, room / 2)
    low, expected, high = (max(1, math.ceil(h * 3600 / useful)) for h in (hours.low, hours.expected, hours.high))
    if high == 1:
        return 1, "the run ends within it"
    about = f"about {expected - 1}" if low == high else f"{low - 1} to {high - 1}"
    noun = "requeue" if high == 2 else "requeues"
    takes = f"the run takes {_hours(hours.low)} to {_hours(hours.high)}"
    return expected, f"{takes}, so {about} {noun}, each from the last checkpoint"


def slurm_time(seconds: int) -> str:
    """Return seconds as ``HH:MM:SS``, above a day as ``D-HH:MM:SS``."""
    days, rest = divmod(seconds, 86400) if seconds > 86400 else (0, seconds)
    text = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{max(1.0, hours * 60):.0f} min"
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.1f} h"
