"""Batch sizes: micro-batch x accumulation x GPUs = global batch, exactly, always."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fullft_cluster.errors import Problem

DEFAULT_GLOBAL_BATCH = 64
"""Sequences an optimizer step where the user names none. It divides by every power of two up to 64, so that the
default does not change with the number of GPUs in the usual layouts (1 to 8, 16, 32, 64)."""

LEAST, MOST = 32, 128
"""Where another default has to be taken, it lies between these if any multiple does."""


@dataclass(frozen=True)
class Batch:
    """Sequences at once on a GPU, and how often before an optimizer step."""

    micro: int
    accumulation: int


def default_global_batch(unit: int) -> int:
    """Return the default global batch that ``unit`` (GPUs, or GPUs x the user's micro-batch) divides.

    64 where it can be; else unit x a power of two, the nearest to 64, within 32 and 128; else the unit itself.
    """
    if DEFAULT_GLOBAL_BATCH % unit == 0:
        return DEFAULT_GLOBAL_BATCH
    multiples = [unit * 2**power for power in range(8) if LEAST <= unit * 2**power <= MOST]
    return min(multiples, key=lambda batch: (abs(batch - DEFAULT_GLOBAL_BATCH), batch), default=unit)


def splits(global_batch: int, gpus: int, micro: int | None, most: int) -> Iterator[Batch]:
    """Yield the ways to split a global batch, the largest micro-batch first; none where it cannot be split.

    Without a given micro-batch every divisor of the GPU's share up to ``most`` is one.
    """
    if global_batch % gpus:
        return
    share = global_batch // gpus
    tried = (micro,) if micro else range(min(share, most), 0, -1)
    yield from (Batch(size, share // size) for size in tried if share % size == 0)


def indivisible(global_batch: int, gpus: int, micro: int | None, workers: str) -> Problem | None:
    """Return the problem of a global batch that does not divide, with the nearest valid values; None if it does.

    ``workers`` are the GPUs in words: ``8 GPUs``, ``2 processes``.
    """
    unit = gpus * (micro or 1)
    if global_batch % unit == 0:
        return None
    below, above = global_batch // unit * unit, (global_batch // unit + 1) * unit
    divisor = workers + (f" x micro-batch {micro}" if micro else "")
    fix = f"Write {below} or {above}." if below else f"Write {above}."
    return Problem("train.global_batch_size", f"{global_batch} does not divide by {divisor}", f"{fix} {_or(unit)}")


def _or(unit: int) -> str:
    return f"Every multiple of {unit} will do." if unit > 1 else ""
