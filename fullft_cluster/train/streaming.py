"""Data that is tokenised while training: the same blocks in any order, found by an index that holds no tokens.

A chunk of rows is read, tokenised and packed as the preparation did it to count its blocks. Some chunks, drawn by the
seed, are open at once, and their blocks are mixed; the next ones are made ready by a thread meanwhile. Where a step's
blocks are follows from the seed and the step alone, so a resume opens as many chunks as any step does.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem
from fullft_cluster.row_sources import sources_of
from fullft_cluster.train.chunks import Index, decode_index, list_files, read_chunk, sizes_of
from fullft_cluster.train.data import INDEX, Batch, Blocks, Ints, Order, PreparedData
from fullft_cluster.train.encoder import Encoder
from fullft_cluster.train.exits import DataFault
from fullft_cluster.train.packing import cut, pack
from fullft_cluster.train.tokenizer import encoder_settings, load_tokenizer

OPEN_CHUNKS = 8
"""Chunks whose blocks are mixed: some eight million tokens, 30 MB."""
KEPT_CHUNKS = 3 * OPEN_CHUNKS
"""In memory between two batches: those that are open, the next ones, and what a batch that lies across them needs."""


class StreamOrder(Order):
    """The order of the blocks of chunks: `OPEN_CHUNKS` at a time, in an order of their own for each epoch."""

    def __init__(self, chunks: Ints, *, global_batch_size: int, epochs: int, max_steps: int | None, seed: int) -> None:
        """`chunks` has the number of blocks of each."""
        self.next_chunks: Ints = np.zeros(0, dtype=np.int64)
        """Those that will be opened when those of the step that was asked for last are through."""
        self._ends = np.cumsum(chunks)
        self._starts = self._ends - chunks
        self._cached_windows = lru_cache(maxsize=2)(self._windows)
        super().__init__(
            blocks=int(self._ends[-1]), global_batch_size=global_batch_size, epochs=epochs, max_steps=max_steps,
            seed=seed,
        )  # fmt: skip

    def _drawn(self, epoch: int) -> tuple[np.random.RandomState, list[Ints]]:
        """Return the chunks that are open together, in turn, and the generator that has drawn them."""
        random = np.random.RandomState([self.seed, epoch])
        chunks = random.permutation(len(self._ends)).astype(np.int64)
        return random, [chunks[at : at + OPEN_CHUNKS] for at in range(0, len(chunks), OPEN_CHUNKS)]

    def _windows(self, epoch: int) -> list[Ints]:
        return self._drawn(epoch)[1]

    def _draw(self, epoch: int) -> Ints:
        random, windows = self._drawn(epoch)
        found: list[Ints] = []
        for window in windows:
            blocks = np.concatenate([np.arange(self._starts[chunk], self._ends[chunk]) for chunk in window])
            found.append(random.permutation(blocks))
        return np.concatenate(found)

    def chunk_of(self, blocks: Ints) -> Ints:
        """Return which chunk each block is of."""
        found: Ints = np.searchsorted(self._ends, blocks, side="right")
        return found

    def behind(self, step: int) -> Ints:
        """Return the chunks that will be opened when those of this step are through."""
        last = (step + 1) * self.global_batch_size - 1
        epoch, place = divmod(last, self.blocks)
        windows = self._cached_windows(epoch)
        sizes = [int((self._ends[window] - self._starts[window]).sum()) for window in windows]
        following = int(np.searchsorted(np.cumsum(sizes), place, side="right")) + 1
        if following < len(windows):
            return windows[following]
        more = (epoch + 1) * self.blocks < self._end
        return self._cached_windows(epoch + 1)[0] if more else np.zeros(0, dtype=np.int64)

    def step(self, step: int) -> Ints:
        """Return the `global_batch_size` blocks of a step (counted from 0)."""
        self.next_chunks = self.behind(step)
        return super().step(step)


class StreamedData(PreparedData):
    """Blocks that are tokenised when they are needed. Raises DataFault when the rows are not those of the index."""

    def __init__(self, cache: Path, config: Config) -> None:
        super().__init__(cache)
        self._index: Index = decode_index((cache / INDEX).read_bytes())
        self._config = config
        found = sources_of(config.data)
        if sizes_of(found) != self._index.sizes:
            fix = "Run `fullft-cluster prepare`, which reads it anew, and submit a new run."
            raise DataFault(Problem(str(cache), "was made of files that have changed since", fix))
        self._sources = [
            msgspec.structs.replace(source, format=form)
            for source, form in zip(found, self._index.formats, strict=True)
        ]
        self._files = [list_files(source) for source in self._sources]
        self._firsts: list[int] = np.cumsum([0, *self._index.blocks]).tolist()
        self._encoder = Encoder(encoder_settings(config, load_tokenizer(config)))
        self._open: OrderedDict[int, Future[Blocks]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "tokenise")
        self._order: StreamOrder | None = None

    def order(self, *, global_batch_size: int, epochs: int, max_steps: int | None, seed: int) -> StreamOrder:
        """Return the order of the blocks; chunks are made ready as it is asked for steps."""
        self._order = StreamOrder(
            np.array(self._index.blocks), global_batch_size=global_batch_size, epochs=epochs, max_steps=max_steps,
            seed=seed,
        )  # fmt: skip
        return self._order

    def batch(self, blocks: Ints) -> Batch:
        """Return the blocks with these numbers; -1 gives a block of padding, whose labels all are -100."""
        assert self._order is not None, "order() comes first"
        empty = np.zeros(0, dtype=np.int64)
        padding = Blocks(
            tokens=empty, bits=empty, edges=empty, starts=empty, seq_len=self.meta.seq_len, pad_id=self.meta.pad_id
        )
        made = padding.padding(len(blocks))
        chunks = self._order.chunk_of(blocks)
        for chunk in np.unique(chunks[blocks >= 0]):
            self._prepare(int(chunk))
        for row, (block, chunk) in enumerate(zip(blocks, chunks, strict=True)):
            if block >= 0:
                self._chunk(int(chunk)).fill(made, row, int(block) - self._firsts[chunk])
        for chunk in self._order.next_chunks:
            self._prepare(int(chunk))
        # Only now: a batch may be of more chunks than are kept, where sources are small.
        while len(self._open) > KEPT_CHUNKS:
            self._open.popitem(last=False)
        return made

    def _prepare(self, chunk: int) -> None:
        """Have a chunk made ready, unless it is."""
        if chunk in self._open:
            self._open.move_to_end(chunk)
            return
        self._open[chunk] = self._thread.submit(self._load, chunk)

    def _chunk(self, chunk: int) -> Blocks:
        future = self._open[chunk]
        if future.cancel():  # not begun: others wait before it, which are needed later
            self._open[chunk] = future = Future()
            future.set_result(self._load(chunk))
        return future.result()

    def _load(self, chunk: int) -> Blocks:
        """Read, tokenise and pack one chunk. Raises DataFault when it is not what the index says."""
        config, known = self._config, self._index.chunks[chunk]
        samples = read_chunk(
            known, self._sources[known.source], self._files[known.source], config.data, config.train.seed
        )
        encoded = self._encoder.encode(samples)
        done = cut(encoded.documents, self.meta.seq_len, config.data.long_rows)
        train = done.documents.take(~encoded.held_out[done.row])
        packed = pack(train, self.meta.seq_len, packing=config.data.packing)
        first = self._firsts[chunk]
        sizes = np.diff(self._edges[first : first + self._index.blocks[chunk] + 1])
        if packed.blocks.tolist() != sizes.tolist():
            source = self._sources[known.source].path
            raise DataFault(Problem(source, "has other rows than when it was prepared", "Prepare and submit it anew."))
        ends = np.cumsum(packed.documents)
        return Blocks(
            tokens=packed.tokens, bits=np.packbits(packed.supervised),
            edges=np.concatenate([[0], np.cumsum(packed.blocks)]), starts=ends - packed.documents,
            seq_len=self.meta.seq_len, pad_id=self.meta.pad_id,
        )  # fmt: skip
