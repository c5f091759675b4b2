"""What ranks tell each other besides gradients: every failure becomes known to all, so that none waits for another.

All functions are collectives: every rank calls them, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fullft_cluster.errors import FullftError, RunFailedError

T = TypeVar("T")


def on_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone and return its (picklable) result on all ranks, or raise its error on all of them."""
    outcome: list[Any] = [None, None]
    own: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = [work(), None]
        except Exception as error:
            own = error
            told = error if isinstance(error, FullftError | OSError) else _told(0, _message(error))
            outcome = [None, told]
    dist.broadcast_object_list(outcome, src=0)
    if own is not None:
        raise own
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Run `work` on each rank and return all results by rank; if it fails on any, raise on all of them."""
    mine: tuple[Any, str] = (None, "")
    own: Exception | None = None
    try:
        mine = (work(), "")
    except Exception as error:
        own, mine = error, (None, _message(error))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    if own is not None:
        raise own
    for rank, (_, message) in enumerate(gathered):
        if message:
            raise _told(rank, message)
    return [value for value, _ in gathered]


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _told(rank: int, message: str) -> RunFailedError:
    return RunFailedError(f"rank {rank} failed: {message}")


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Return the elementwise sum of each rank's numbers, as float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    result: list[float] = tensor.tolist()
    return result
