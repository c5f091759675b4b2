"""Documents into blocks: cut what is too long, then best-fit packing by TRL. T tokens, D documents.

Packing is `trl.pack_dataset` ("bfd": best-fit decreasing, https://arxiv.org/abs/2404.10830). Long rows are cut before
it, not by it, because a piece without a label has to be left out before blocks are filled with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fullft_cluster.train.data import Ints

LongRows = Literal["split", "truncate", "drop"]
Bools = npt.NDArray[np.bool_]

PACK_TOKENS = 2**24
PACK_DOCUMENTS = 2**17
"""Documents are packed together in batches of so many tokens or documents: many enough to fill each other's gaps to
within a fraction of a percent, few enough for the memory of a login node. Bounds of the batches depend on the documents
alone, so the blocks are the same however the work was divided."""


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end."""

    tokens: npt.NDArray[Any]
    """Shape (T)."""
    supervised: Bools
    """Which tokens have a label. Shape (T)."""
    lengths: Ints
    """Shape (D), sum T."""

    @property
    def ends(self) -> Ints:
        """Return where each document ends. Shape (D)."""
        return np.cumsum(self.lengths)

    def take(self, chosen: Bools) -> Documents:
        """Return some of the documents; `chosen` has the shape (D)."""
        if chosen.all():
            return self
        tokens = np.repeat(chosen, self.lengths)
        return Documents(self.tokens[tokens], self.supervised[tokens], self.lengths[chosen])


@dataclass(frozen=True)
class Cut:
    """Rows cut to documents of at most seq_len tokens that all have a label."""

    documents: Documents
    row: Ints
    """Which row each document comes from. Shape (D)."""
    too_long: Bools
    """Rows of more than seq_len tokens. Shape (rows)."""
    pieces_dropped: int
    """Pieces of rows that were split, without a label of their own, while another piece has one."""


def cut(rows: Documents, seq_len: int, long_rows: LongRows) -> Cut:
    """Split, truncate or drop rows of more than `seq_len` tokens; leave out what has no label.

    The first token of a document has no label. Where a row is split, each piece therefore begins with the last token of
    the one before, so that no label is lost. A row of which no document remains has nothing to learn, or is too long
    where `long_rows` is "drop".
    """
    stride = max(seq_len - 1, 1)
    too_long = rows.lengths > seq_len
    if long_rows == "drop":
        pieces = np.where(too_long, 0, 1)
    elif long_rows == "truncate":
        pieces = np.ones(len(rows.lengths), dtype=np.int64)
    else:
        pieces = 1 + np.maximum(-(-(rows.lengths - seq_len) // stride), 0)
    row = np.repeat(np.arange(len(rows.lengths)), pieces)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = (rows.ends - rows.lengths)[row] + nth * stride
    lengths = np.minimum(rows.lengths[row] - nth * stride, seq_len)
    # Labels of each piece but its first token's, by the running count at its edges: pieces overlap.
    count = np.concatenate([[0], np.cumsum(rows.supervised)])
    kept = count[begin + lengths] > count[begin + 1]
    learnt = np.zeros(len(rows.lengths), dtype=bool)
    learnt[row[kept]] = True
    dropped = int((~kept & learnt[row]).sum())
    if kept.all() and not too_long.any():
        documents = Documents(rows.tokens, rows.supervised.copy(), lengths)
    else:
        places = _places(begin[kept], lengths[kept])
        documents = Documents(rows.tokens[places], rows.supervised[places], lengths[kept])
    documents.supervised[documents.ends - documents.lengths] = False
    return Cut(documents=documents, row=row[kept], too_long=too_long, pieces_dropped=dropped)


def _places(begin: Ints, lengths: Ints) -> Ints:
    """Return begin[0], begin[0]+1, ... for `lengths[0]` places, then the same from begin[1], and so on."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - lengths), lengths)


@dataclass(frozen=True)
class Packed:
    """Blocks laid end to end."""

    tokens: npt.NDArray[Any]
    supervised: Bools
    blocks: Ints
    """Tokens of each block."""
    documents: Ints
    """Tokens of each document, in the order of the blocks."""

    @property
    def labels(self) -> Ints:
        """Return the labels of each block."""
        edges = np.concatenate([[0], np.cumsum(self.blocks)])
        return np.diff(np.concatenate([[0], np.cumsum(self.supervised)])[edges])


def pack(documents: Documents, seq_len: int, *, packing: bool) -> Packed:
    """Put documents of at most `seq_len` tokens into blocks; without `packing` each is a block."""
    if not packing or not len(documents.lengths):
        return Packed(documents.tokens, documents.supervised, documents.lengths, documents.lengths)
    import pyarrow as pa
    from datasets import Dataset
    from trl import pack_dataset

    offsets = np.concatenate([[0], documents.ends]).astype(np.int32)
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values))
        for name, values in (("tokens", documents.tokens), ("supervised", documents.supervised.view(np.uint8)))
    }
    options = {"batch_size": None, "keep_in_memory": True, "load_from_cache_file": False, "new_fingerprint": "packed"}
    with _no_progress_bar():
        # With a fingerprint of its own the data set need not be hashed.
        found = pack_dataset(Dataset(pa.table(columns), fingerprint="documents"), seq_len, "bfd", options)
    table = found.data.table.combine_chunks()
    tokens, supervised, lengths = (table[name].chunk(0) for name in ("tokens", "supervised", "seq_lengths"))
    return Packed(
        tokens=tokens.flatten().to_numpy(), supervised=supervised.flatten().to_numpy().astype(bool),
        blocks=np.diff(tokens.offsets.to_numpy()).astype(np.int64),
        documents=lengths.flatten().to_numpy().astype(np.int64),
    )  # fmt: skip


class _no_progress_bar:
    """Keep `datasets` from drawing a bar of its own for each batch."""

    def __enter__(self) -> None:
        from datasets.utils.logging import disable_progress_bar, is_progress_bar_enabled

        self._was = is_progress_bar_enabled()
        disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from datasets.utils.logging import enable_progress_bar

        if self._was:
            enable_progress_bar()


def batches(parts: Iterable[Documents]) -> Iterator[Documents]:
    """Yield the documents of `parts` in the batches that are packed together: the same for any division into parts."""
    waiting: list[Documents] = []
    tokens = documents = 0
    for part in parts:
        rest = part
        while len(rest.lengths):
            fits = int(np.searchsorted(rest.ends, PACK_TOKENS - tokens, side="right"))
            fits = min(fits, PACK_DOCUMENTS - documents, len(rest.lengths))
            size = int(rest.lengths[:fits].sum())
            waiting.append(Documents(rest.tokens[:size], rest.supervised[:size], rest.lengths[:fits]))
            tokens, documents = tokens + size, documents + fits
            rest = Documents(rest.tokens[size:], rest.supervised[size:], rest.lengths[fits:])
            if len(rest.lengths):
                yield _joined(waiting)
                waiting, tokens, documents = [], 0, 0
    if documents:
        yield _joined(waiting)


def _joined(parts: list[Documents]) -> Documents:
    return Documents(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "supervised", "lengths"))
    )
