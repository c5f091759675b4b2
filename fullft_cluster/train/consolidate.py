"""The weights in a checkpoint, one tensor at a time: without a process group or a GPU, and never whole in memory.

DeepSpeed ships `zero_to_fp32.py` for this, whose layout of the files is followed here: but its lazy mode covers ZeRO-3
alone, under ZeRO-1 and 2 it joins all weights in memory, and it reads the 16-bit copy beside them whole.
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/zero_to_fp32.py
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.planner.storage import EXPORT_MAPPED_BYTES

MAPPED_BYTES = EXPORT_MAPPED_BYTES
"""What is read through memory maps before they are made anew: pages that were read count as resident until then."""
FAULT_BYTES = 1 << 21
"""What a look at a few bytes may map: the kernel maps what lies around them too, up to a large folio of the page cache
(https://docs.kernel.org/admin-guide/mm/transhuge.html)."""

Shape = tuple[int, ...]


class Weights(ABC):
    """The fp32 weights of a checkpoint: names and shapes at once, values when they are asked for."""

    shapes: Mapping[str, Shape]
    """By name; of tied weights the one that was trained, under one of its names (ZeRO) or under each (FSDP)."""

    @abstractmethod
    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` to `stop` of the flattened tensor, fp32. Raises RunFailedError."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, fp32. Raises RunFailedError."""
        shape = self.shapes[name]
        return self.part(name, 0, math.prod(shape)).view(shape)


def open_weights(checkpoint: Path, mapped_bytes: int = MAPPED_BYTES) -> Weights:
    """Return the weights of a checkpoint's directory, whichever engine wrote it. Raises RunFailedError."""
    for shards in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        if next(shards.glob("*_optim_states.pt"), None):
            return ZeroWeights(shards, mapped_bytes)
        if (shards / ".metadata").is_file():
            from fullft_cluster.train.consolidate_dcp import DcpWeights

            return DcpWeights(shards)
    what = "holds no weights that are known here: neither DeepSpeed's files nor those of FSDP"
    raise RunFailedError(Problem(str(checkpoint), what))


class Span(NamedTuple):
    """A stretch of a tensor, as it lies in one rank's file."""

    rank: int
    group: int
    start: int
    stop: int


class ZeroWeights(Weights):
    """The fp32 master weights of ZeRO-1, 2 and 3. The files are mapped, so that only what is asked for is read."""

    def __init__(self, directory: Path, mapped_bytes: int = MAPPED_BYTES) -> None:
        self._directory = directory
        self._limit, self._mapped = mapped_bytes, 0
        self._open: dict[int, list[torch.Tensor]] = {}
        self._files = sorted(directory.glob("*_optim_states.pt"), key=_rank)
        # ZeRO-1 and 2 have one file of 16-bit weights, ZeRO-3 one a rank without weights; rank 0's has all shapes.
        whole = directory / "mp_rank_00_model_states.pt"
        self._sharded = not whole.is_file()
        states = _load(directory / "zero_pp_rank_0_mp_rank_00_model_states.pt" if self._sharded else whole)
        written = _load(self._files[0])["optimizer_state_dict"]
        count = written["partition_count"]
        if (ranks := max(count) if isinstance(count, list) else count) != len(self._files):
            what = f"was written by {ranks} processes, but has the shards of {len(self._files)}"
            raise RunFailedError(Problem(str(directory), what))
        if any(states.get(key) for key in ("frozen_param_shapes", "buffer_names")):
            raise RunFailedError(
                Problem(str(directory), "has frozen parameters or buffers, which are not exported yet")
            )
        groups = [{name: tuple(shape) for name, shape in group.items()} for group in states["param_shapes"]]
        self.shapes = {name: shape for group in groups for name, shape in group.items()}
        sizes = [flat.numel() for flat in self._flats(0)]
        found = self._sharded_spans(sizes) if self._sharded else self._grouped_spans(groups, sizes, written)
        self._spans = dict(found)

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Weights`."""
        pieces, position = [], 0
        for span in self._spans[name]:
            length = span.stop - span.start
            low, high = max(start - position, 0), min(stop - position, length)
            if low < high:
                flat = self._flats(span.rank)[span.group]
                pieces.append(flat[span.start + low : span.start + high].float())
            position += length
        values = torch.cat(pieces)  # a copy, also of a single piece: no view of a file leaves
        if len(values) != stop - start:
            raise RunFailedError(Problem(str(self._directory), f"its shards are too short for {name}"))
        self._mapped += sum(max(piece.nbytes, FAULT_BYTES) for piece in pieces)
        if self._mapped >= self._limit:
            self._open.clear()
            self._mapped = 0
        return values

    def _flats(self, rank: int) -> list[torch.Tensor]:
        """Return a rank's flattened master weights, mapped: a tensor a parameter group, or a sub-group of ZeRO-3."""
        if rank not in self._open:
            state = _load(self._files[rank])["optimizer_state_dict"]
            self._open[rank] = list(state["fp32_flat_groups" if self._sharded else "single_partition_of_fp32_groups"])
        return self._open[rank]

    def _sharded_spans(self, sizes: list[int]) -> Iterator[tuple[str, list[Span]]]:
        """Yield where each tensor lies under ZeRO-3: cut into equal parts over the ranks, the last one padded.

        A rank's parts follow each other in the order of the parameters, laid over its sub-groups of `sizes` elements.
        """
        ranks, offset = len(self._files), 0
        for name, shape in self.shapes.items():
            elements = math.prod(shape)
            each = -(-elements // ranks)
            spans = []
            for rank in range(ranks):
                length = min(each, max(elements - rank * each, 0))
                spans += [Span(rank, *piece) for piece in _cut(sizes, offset, offset + length)]
            yield name, spans
            offset += each

    def _grouped_spans(
        self, groups: list[dict[str, Shape]], sizes: list[int], written: dict[str, Any]
    ) -> Iterator[tuple[str, list[Span]]]:
        """Yield where each tensor lies under ZeRO-1 and 2: each parameter group is one vector, cut over the ranks."""
        paddings = written.get("param_alignment_paddings") or [[0] * len(group) for group in groups]
        for number, group in enumerate(groups):
            cuts, offset = [sizes[number]] * len(self._files), 0
            for (name, shape), padding in zip(group.items(), paddings[number], strict=True):
                end = offset + math.prod(shape)
                yield name, [Span(rank, number, start, stop) for rank, start, stop in _cut(cuts, offset, end)]
                offset = end + padding


def _cut(sizes: list[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (index, start, stop) of the pieces of a stretch over vectors of these sizes, laid end to end."""
    begin = 0
    for index, size in enumerate(sizes):
        low, high = max(start, begin), min(stop, begin + size)
        if low < high:
            yield index, low - begin, high - begin
        begin += size


def _rank(path: Path) -> int:
    match = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else 0


def _load(path: Path) -> Any:
    """Return what a file of DeepSpeed holds, its tensors mapped.

    The files hold DeepSpeed's own classes, which `weights_only` does not take; they are the run's own, with digests.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except FileNotFoundError:
        fix = "Where the run goes on, an old checkpoint is deleted after a new one: take the newest."
        raise RunFailedError(Problem(str(path), "is gone", fix)) from None
    except (OSError, RuntimeError, EOFError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise RunFailedError(Problem(str(path), f"cannot be read ({first})")) from None
