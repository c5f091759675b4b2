"""How an export is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fullft_cluster.planner.storage import EXPORT_FILE_BYTES


@dataclass(frozen=True)
class Form:
    """What may be chosen of an export."""

    dtype: str | None = None
    """`bf16` or `fp32`; default the precision of training."""
    max_shard_bytes: int = EXPORT_FILE_BYTES
    """Of a file."""
    verify: bool = False
    """Compare the digests of the checkpoint's files first: all of it is read once more."""
    say: Callable[[str], None] = lambda text: None
    """Is told of what takes its time: the digests, and each file that is written."""
