"""train.packing: nothing that is supervised is lost without being counted, however the work is divided."""

from __future__ import annotations

from collections import Counter

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("trl")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fullft_cluster.train import packing  # noqa: E402
from fullft_cluster.train.packing import Documents, LongRows, batches, cut, pack  # noqa: E402

lengths = st.lists(st.integers(1, 40), max_size=40)


def rows_of(lengths: list[int], seed: int) -> Documents:
    """Return rows whose tokens all differ, half of them supervised."""
    total = sum(lengths)
    supervised = np.random.default_rng(seed).random(total) < 0.5
    return Documents(np.arange(total, dtype=np.uint32), supervised, np.array(lengths, dtype=np.int64))


def parts_of(documents: Documents, size: int) -> list[Documents]:
    """Return the documents in shards of so many."""
    shards = np.arange(len(documents.lengths)) // size
    return [documents.take(shards == shard) for shard in range(-(-len(documents.lengths) // size))]


@settings(max_examples=40, deadline=None)
@given(
    lengths=lengths,
    seq_len=st.integers(1, 30),
    long_rows=st.sampled_from(["split", "truncate", "drop"]),
    seed=st.integers(0, 99),
)
def test_every_supervised_token_is_learnt_once_or_counted(
    lengths: list[int], seq_len: int, long_rows: LongRows, seed: int
) -> None:
    rows = rows_of(lengths, seed)
    done = cut(rows, seq_len, long_rows)
    packed = pack(done.documents, seq_len, packing=True)
    learnt = packed.tokens[packed.supervised]
    assert len(set(learnt)) == len(learnt), "no token twice"
    begins = np.repeat(rows.ends - rows.lengths, rows.lengths)
    place = np.arange(len(rows.tokens)) - begins
    could = rows.supervised & (place > 0)
    if long_rows == "split":
        expected = could if seq_len > 1 else could & False
    else:
        kept = ~done.too_long if long_rows == "drop" else np.ones(len(lengths), dtype=bool)
        expected = could & (place < seq_len) & np.repeat(kept, rows.lengths)
    assert sorted(learnt) == np.flatnonzero(expected).tolist()
    assert done.too_long.tolist() == [length > seq_len for length in lengths]


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, seq_len=st.integers(2, 30), seed=st.integers(0, 99))
def test_what_is_packed_is_what_was_cut(lengths: list[int], seq_len: int, seed: int) -> None:
    done = cut(rows_of(lengths, seed), seq_len, "split").documents
    packed = pack(done, seq_len, packing=True)
    assert packed.blocks.sum() == packed.documents.sum() == len(packed.tokens)
    assert not len(packed.blocks) or packed.blocks.max() <= seq_len
    before = np.split(done.tokens, done.ends)[:-1]
    after = np.split(packed.tokens, np.cumsum(packed.documents))[:-1]
    assert Counter(map(bytes, before)) == Counter(map(bytes, after)), "documents stay whole"
    assert set(np.cumsum(packed.blocks)) <= set(np.cumsum(packed.documents)), "and within a block"
    first = np.concatenate([[0], np.cumsum(packed.documents)[:-1]]) if len(packed.documents) else []
    assert not packed.supervised[np.array(first, dtype=int)].any()


def test_best_fit_fills_blocks() -> None:
    """Blocks of 10 from 7, 6, 5, 5, 4, 3: three full ones, which no order of arrival would give."""
    documents = rows_of([5, 3, 7, 4, 6, 5], 0)
    documents = Documents(documents.tokens, np.ones(30, dtype=bool), documents.lengths)
    packed = pack(documents, 10, packing=True)
    assert packed.blocks.tolist() == [10, 10, 10]
    assert pack(documents, 10, packing=False).blocks.tolist() == [5, 3, 7, 4, 6, 5]


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, shard=st.integers(1, 50), most=st.integers(40, 200))
def test_batches_do_not_depend_on_the_shards(lengths: list[int], shard: int, most: int) -> None:
    documents = rows_of(lengths, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PACK_TOKENS", most)
        patch.setattr(packing, "PACK_DOCUMENTS", 7)
        whole = list(batches([documents]))
        parts = list(batches(parts_of(documents, shard)))
    assert [batch.lengths.tolist() for batch in whole] == [batch.lengths.tolist() for batch in parts]
    assert all(batch.lengths.sum() <= most and len(batch.lengths) <= 7 for batch in whole)
    tokens = [token for batch in parts for token in batch.tokens.tolist()]
    assert tokens == documents.tokens.tolist()


def test_a_piece_without_a_label_is_dropped_and_counted() -> None:
    """A row of three pieces: the second has nothing to learn, the third its only supervised token at its end."""
    supervised = np.array([bit == "1" for bit in "0110" + "000" + "001"])
    rows = Documents(np.arange(10, dtype=np.uint32), supervised, np.array([10]))
    done = cut(rows, 4, "split")
    assert (done.documents.tokens.tolist(), done.pieces_dropped) == ([0, 1, 2, 3, 6, 7, 8, 9], 1)


def test_the_last_token_of_a_long_row_is_learnt() -> None:
    """EOS alone in a piece would be predicted from nothing: a piece begins with the last token of the one before."""
    rows = Documents(np.arange(5, dtype=np.uint32), np.ones(5, dtype=bool), np.array([5]))
    done = cut(rows, 4, "split").documents
    assert (done.tokens.tolist(), done.lengths.tolist()) == ([0, 1, 2, 3, 3, 4], [4, 2])
    assert done.tokens[done.supervised].tolist() == [1, 2, 3, 4]
