"""Packed training data: memory-mapped, in an order that is a pure function of seed and step. B blocks, S tokens.

A cache holds one stream of tokens, cut into blocks of ``seq_len``; the documents in a block are kept apart by position
ids that restart at each start of a document, and the first token of a document (or of what a block holds of it) has
the label -100, so that nothing is predicted from the document before.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from fullft_cluster.errors import Problem
from fullft_cluster.plan import Frozen
from fullft_cluster.train.exits import DataFault

IGNORE = -100
"""The label that no loss is computed for (torch.nn.functional.cross_entropy's default ignore_index)."""
TOKENS, STARTS, VALID, META, COMPLETE = "tokens.bin", "starts.npy", "valid.npy", "meta.json", "COMPLETE"

Ints = npt.NDArray[np.int64]


class CacheMeta(Frozen, frozen=True, kw_only=True):
    """What a prepared cache holds."""

    version: int = 1
    key: str
    dtype: str
    """numpy's name of the type of a token id: uint16 or uint32."""
    tokens: int
    rows: int
    blocks: int
    seq_len: int
    pad_id: int


class Batch(Frozen, frozen=True, kw_only=True):
    """Blocks for one forward pass; each array has the shape (B, S)."""

    input_ids: Ints
    labels: Ints
    position_ids: Ints


def is_complete(cache: Path) -> bool:
    """Return whether a directory holds a whole cache: its mark is there and its files have the right sizes."""
    try:
        meta = read_meta(cache)
        sizes = (cache / TOKENS).stat().st_size == meta.tokens * np.dtype(meta.dtype).itemsize
        return sizes and (cache / COMPLETE).exists() and (cache / STARTS).exists() and (cache / VALID).exists()
    except (OSError, msgspec.DecodeError):
        return False


def read_meta(cache: Path) -> CacheMeta:
    """Read meta.json. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((cache / META).read_bytes(), type=CacheMeta)


def valid_labels(starts: Ints, tokens: int, seq_len: int) -> Ints:
    """Return how many labels each block has: its tokens less one for every document, or part of one, that starts in it.

    `starts` are the ascending offsets of the documents in the stream.
    """
    blocks = math.ceil(tokens / seq_len)
    edges = np.arange(blocks, dtype=np.int64) * seq_len
    firsts = np.union1d(starts, edges)
    lengths = np.full(blocks, seq_len, dtype=np.int64)
    lengths[-1] = tokens - edges[-1]
    return lengths - np.bincount(firsts // seq_len, minlength=blocks)


class PackedData:
    """A prepared cache, mapped. Raises DataFault when it is not whole."""

    def __init__(self, cache: Path) -> None:
        if not is_complete(cache):
            fix = "Run `fullft-cluster prepare` again."
            raise DataFault(Problem(str(cache), "is not a complete data cache", fix))
        self.meta = read_meta(cache)
        self._tokens = np.memmap(cache / TOKENS, dtype=self.meta.dtype, mode="r")
        self._starts = np.load(cache / STARTS, mmap_mode="r")
        self._valid: Ints = np.load(cache / VALID)

    def __len__(self) -> int:
        return self.meta.blocks

    def tokens_in(self, blocks: Ints) -> int:
        """Return the tokens in some blocks, padding not counted; -1 stands for a block of padding."""
        real = blocks[blocks >= 0]
        last = int(np.count_nonzero(real == self.meta.blocks - 1))
        spare = self.meta.blocks * self.meta.seq_len - self.meta.tokens
        return len(real) * self.meta.seq_len - last * spare

    def labels_in(self, blocks: Ints) -> int:
        """Return the labels in some blocks that a loss is computed for."""
        return int(self._valid[blocks[blocks >= 0]].sum())

    def batch(self, blocks: Ints) -> Batch:
        """Return the blocks with these numbers; -1 gives a block of padding, whose labels all are -100."""
        size = self.meta.seq_len
        ids = np.full((len(blocks), size), self.meta.pad_id, dtype=np.int64)
        labels = np.full((len(blocks), size), IGNORE, dtype=np.int64)
        positions = np.tile(np.arange(size, dtype=np.int64), (len(blocks), 1))
        for row, block in enumerate(blocks):
            if block < 0:
                continue
            begin, end = block * size, min((block + 1) * size, self.meta.tokens)
            found = self._tokens[begin:end]
            ids[row, : len(found)] = found
            first, last = np.searchsorted(self._starts, [begin, end])
            starts = np.union1d(self._starts[first:last] - begin, [0])
            labels[row, : len(found)] = found
            labels[row, starts] = IGNORE
            mark = np.zeros(size, dtype=np.int64)
            mark[starts] = starts
            if len(found) < size:
                mark[len(found)] = len(found)  # the padding is a document of its own
            positions[row] -= np.maximum.accumulate(mark)
        return Batch(input_ids=ids, labels=labels, position_ids=positions)


class Order:
    """Which blocks each optimizer step learns from: a pure function of (seed, step), so a resume needs no replay.

    Epoch e is the permutation that numpy's RandomState((seed, e)) draws; its stream is frozen (NEP 19,
    https://numpy.org/neps/nep-0019-rng-policy.html). Batches run on across the end of an epoch. After the last epoch
    the rest of a batch is -1: blocks of padding with weight 0, so that every rank has the same number of micro-steps.
    """

    def __init__(self, *, blocks: int, global_batch_size: int, epochs: int, max_steps: int | None, seed: int) -> None:
        self.blocks = blocks
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.total_steps = max_steps or math.ceil(blocks * epochs / global_batch_size)
        self._end = self.total_steps * global_batch_size if max_steps else blocks * epochs
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> Ints:
        return np.random.RandomState([self.seed, epoch]).permutation(self.blocks).astype(np.int64)

    def step(self, step: int) -> Ints:
        """Return the `global_batch_size` blocks of a step (counted from 0)."""
        first = step * self.global_batch_size
        wanted = np.arange(first, first + self.global_batch_size, dtype=np.int64)
        epochs, places = np.divmod(wanted, self.blocks)
        chosen = np.full(self.global_batch_size, -1, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = (epochs == epoch) & (wanted < self._end)
            chosen[here] = self._permutation(int(epoch))[places[here]]
        return chosen

    def epoch(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        return min(step * self.global_batch_size, self._end) / self.blocks


def rank_share(blocks: Ints, *, rank: int, world_size: int, micro_batch_size: int) -> Ints:
    """Return one rank's part of a step's blocks, shape (micro-steps, micro_batch_size)."""
    shares = blocks.reshape(-1, world_size, micro_batch_size)
    result: Ints = shares[:, rank, :]
    return result
