"""Packed training data: memory-mapped, in an order that is a pure function of seed and step. B blocks, S tokens.

A cache holds blocks of at most ``seq_len`` tokens, laid end to end without padding. Documents in a block are kept
apart by position ids that restart at each start of a document. Which tokens have a label is kept as a bit for each
token, never told from the token itself: EOS is learnt although many tokenizers pad with it. The first token of a
document (or of what a block holds of it) has no label, so that nothing is predicted from the document before.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fullft_cluster.errors import Problem
from fullft_cluster.plan import Frozen
from fullft_cluster.train.exits import DataFault

IGNORE = -100
"""The label that no loss is computed for (torch.nn.functional.cross_entropy's default ignore_index)."""
VERSION = 2
TOKENS, SUPERVISED, BLOCKS, STARTS, VALID = "tokens.bin", "supervised.bin", "blocks.npy", "starts.npy", "valid.npy"
META, COMPLETE, INDEX = "meta.json", "COMPLETE", "index.json"
VALIDATION = "validation"
"""Directory within a cache that is the cache of the held-out rows."""

Ints = npt.NDArray[np.int64]


class CacheMeta(Frozen, frozen=True, kw_only=True):
    """What a prepared cache holds."""

    version: int = VERSION
    key: str
    dtype: str
    """numpy's name of the type of a token id: uint16 or uint32."""
    seq_len: int
    pad_id: int
    tokens: int = 0
    labels: int = 0
    """Tokens that a loss is computed for."""
    rows: int = 0
    documents: int = 0
    """Rows, or what they were cut into."""
    blocks: int = 0
    end_of_turn_id: int | None = None
    """The token that closes an assistant's turn, where there are chats."""
    streaming: bool = False
    """Nothing but an index is kept: rows are tokenised while training."""
    validation: bool = False
    """There is a cache of held-out rows in the directory `validation`."""
    tally: dict[str, Any] = msgspec.field(default_factory=dict)
    """What became of the rows (`shards.Tally`)."""


class Batch(Frozen, frozen=True, kw_only=True):
    """Blocks for one forward pass; each array has the shape (B, S)."""

    input_ids: Ints
    labels: Ints
    position_ids: Ints


def is_complete(cache: Path) -> bool:
    """Return whether a directory holds a whole cache: its mark is there and its files have the right sizes."""
    try:
        meta = read_meta(cache)
        sizes = {TOKENS: meta.tokens * np.dtype(meta.dtype).itemsize, SUPERVISED: -(-meta.tokens // 8)}
        names, sizes = ([INDEX], {}) if meta.streaming else ([STARTS], sizes)
        whole = meta.version == VERSION and all((cache / name).stat().st_size == size for name, size in sizes.items())
        there = all((cache / name).exists() for name in (COMPLETE, BLOCKS, VALID, *names))
        return whole and there and (not meta.validation or is_complete(cache / VALIDATION))
    except (OSError, msgspec.DecodeError):
        return False


def read_meta(cache: Path) -> CacheMeta:
    """Read meta.json. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((cache / META).read_bytes(), type=CacheMeta)


class Blocks:
    """Blocks of tokens with their labels, mapped from a cache or made in memory: what a batch is put together from."""

    def __init__(self, *, tokens: Any, bits: Any, edges: Ints, starts: Any, seq_len: int, pad_id: int) -> None:
        """`bits`: eight tokens' labels a byte; `edges`: where blocks begin, and the last ends; `starts`: documents."""
        self._tokens, self._bits, self._edges, self._starts = tokens, bits, edges, starts
        self._seq_len, self._pad_id = seq_len, pad_id

    def fill(self, batch: Batch, row: int, block: int) -> None:
        """Write one block into a row of a batch that is made of padding."""
        begin, end = int(self._edges[block]), int(self._edges[block + 1])
        length = end - begin
        ids, positions = batch.input_ids[row], batch.position_ids[row]
        ids[:length] = self._tokens[begin:end]
        bits = np.unpackbits(self._bits[begin // 8 : -(-end // 8)], count=begin % 8 + length)[begin % 8 :]
        batch.labels[row, :length] = np.where(bits, ids[:length], IGNORE)
        first, last = np.searchsorted(self._starts, [begin, end])
        starts = self._starts[first:last] - begin
        mark = np.zeros(self._seq_len, dtype=np.int64)
        mark[starts] = starts
        if length < self._seq_len:
            mark[length] = length  # the padding is a document of its own
        positions -= np.maximum.accumulate(mark)

    def padding(self, rows: int) -> Batch:
        """Return a batch of nothing but padding, whose labels all are -100."""
        size = self._seq_len
        return Batch(
            input_ids=np.full((rows, size), self._pad_id, dtype=np.int64),
            labels=np.full((rows, size), IGNORE, dtype=np.int64),
            position_ids=np.tile(np.arange(size, dtype=np.int64), (rows, 1)),
        )

    def batch(self, blocks: Ints) -> Batch:
        """Return the blocks with these numbers; -1 gives a block of padding."""
        made = self.padding(len(blocks))
        for row, block in enumerate(blocks):
            if block >= 0:
                self.fill(made, row, int(block))
        return made


class PreparedData:
    """Blocks whose sizes and labels are known. Raises DataFault when the cache is not whole."""

    def __init__(self, cache: Path) -> None:
        if not is_complete(cache):
            fix = "Run `fullft-cluster prepare` again."
            raise DataFault(Problem(str(cache), "is not a complete data cache", fix))
        self.meta = read_meta(cache)
        self._edges: Ints = np.load(cache / BLOCKS)
        self._valid: Ints = np.load(cache / VALID)

    def __len__(self) -> int:
        return self.meta.blocks

    def tokens_in(self, blocks: Ints) -> int:
        """Return the tokens in some blocks, padding not counted; -1 stands for a block of padding."""
        real = blocks[blocks >= 0]
        return int((self._edges[real + 1] - self._edges[real]).sum())

    def padded_tokens_in(self, blocks: Ints) -> int:
        """Return the tokens that are computed for some blocks, padding counted."""
        return blocks.size * self.meta.seq_len

    def labels_in(self, blocks: Ints) -> int:
        """Return the labels in some blocks that a loss is computed for."""
        return int(self._valid[blocks[blocks >= 0]].sum())

    def batch(self, blocks: Ints) -> Batch:
        """Return the blocks with these numbers; -1 gives a block of padding, whose labels all are -100."""
        raise NotImplementedError


class PackedData(PreparedData):
    """A prepared cache, mapped. Raises DataFault when it is not whole, or holds no tokens because it is streamed."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache)
        if self.meta.streaming:
            raise DataFault(Problem(str(cache), "has no tokens: data.streaming is set"))
        self._blocks = Blocks(
            tokens=np.memmap(cache / TOKENS, dtype=self.meta.dtype, mode="r"),
            bits=np.memmap(cache / SUPERVISED, dtype=np.uint8, mode="r"),
            edges=self._edges, starts=np.load(cache / STARTS, mmap_mode="r"), seq_len=self.meta.seq_len,
            pad_id=self.meta.pad_id,
        )  # fmt: skip

    def batch(self, blocks: Ints) -> Batch:
        """Return the blocks with these numbers; -1 gives a block of padding, whose labels all are -100."""
        return self._blocks.batch(blocks)


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
