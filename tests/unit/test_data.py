"""train.data: batches of packed blocks, and an order of them that needs no replay."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("trl")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fullft_cluster.train.cache_writer import write_cache  # noqa: E402
from fullft_cluster.train.data import IGNORE, CacheMeta, Order, PackedData, rank_share  # noqa: E402
from fullft_cluster.train.packing import Documents, cut  # noqa: E402

PAD = 3


def packed(directory: Path, rows: list[tuple[list[int], list[bool]]], seq_len: int, *, packing: bool) -> PackedData:
    """Make a cache of rows, each tokens and which of them are supervised."""
    documents = Documents(
        np.array([token for tokens, _ in rows for token in tokens], dtype=np.uint16),
        np.array([bit for _, bits in rows for bit in bits], dtype=bool),
        np.array([len(tokens) for tokens, _ in rows]),
    )
    meta = CacheMeta(key="k", dtype="uint16", seq_len=seq_len, pad_id=PAD)
    write_cache(directory, [cut(documents, seq_len, "split").documents], meta, packing=packing)
    return PackedData(directory)


def row(tokens: list[int], supervised: str | None = None) -> tuple[list[int], list[bool]]:
    """Return tokens and their bits: ``"001"`` learns the third alone; all are learnt where nothing is said."""
    return tokens, [bit == "1" for bit in supervised or "1" * len(tokens)]


rows = st.lists(
    st.lists(st.tuples(st.integers(4, 999), st.booleans()), min_size=1, max_size=40).map(
        lambda pairs: ([token for token, _ in pairs], [bit for _, bit in pairs])
    ),
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(rows=rows, packing=st.booleans(), data=st.data())
def test_a_batch_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[list[int], list[bool]]],
    packing: bool,
    data: st.DataObject,
) -> None:
    """Whatever the blocks: documents whole, positions from 0 in each, its labels and no others, padding at the end."""
    rows.append(row([5, 6]))  # there is something to learn
    cache = packed(tmp_path_factory.mktemp("cache") / "c", rows, 40, packing=packing)
    expected = sorted((tokens, [*bits][1:]) for tokens, bits in rows if any(bits[1:]))
    chosen = np.array(data.draw(st.permutations([*range(len(cache)), -1])))
    batch = cache.batch(chosen)
    found, padding = [], 0
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        starts = [*np.flatnonzero(positions == 0), len(ids)]
        for begin, end in itertools.pairwise(starts):
            assert positions[begin:end].tolist() == list(range(end - begin))
            assert labels[begin] == IGNORE, "the document before does not predict it"
            if (ids[begin:end] == PAD).all():
                padding += end - begin
                assert end == len(ids)
                assert (labels[begin:end] == IGNORE).all()
                continue
            learnt = labels[begin:end] != IGNORE
            assert (labels[begin:end] == ids[begin:end])[learnt].all()
            found.append((ids[begin:end].tolist(), learnt[1:].tolist()))
    assert sorted(found) == expected
    assert cache.labels_in(chosen) == np.count_nonzero(batch.labels != IGNORE) == cache.meta.labels
    assert cache.padded_tokens_in(chosen) == batch.input_ids.size
    assert cache.tokens_in(chosen) == cache.meta.tokens == batch.input_ids.size - padding
    one_by_one = [cache.labels_in(np.array([block])) for block in chosen]
    assert one_by_one == (batch.labels != IGNORE).sum(axis=1).tolist()
    assert packing or cache.meta.documents == cache.meta.blocks


def test_eos_is_learnt_though_pad_is_eos(tmp_path: Path) -> None:
    """Masking goes by place, never by id: else a model whose pad is its EOS never learns to stop."""
    eos = PAD
    cache = packed(tmp_path / "c", [row([5, 6, eos]), row([7, 8, eos], "001")], 8, packing=True)
    batch = cache.batch(np.array([0]))
    assert batch.input_ids.tolist() == [[5, 6, eos, 7, 8, eos, PAD, PAD]]
    assert batch.labels.tolist() == [[IGNORE, 6, eos, IGNORE, IGNORE, eos, IGNORE, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


@settings(max_examples=80, deadline=None)
@given(blocks=st.integers(1, 60), batch=st.integers(1, 16), epochs=st.integers(1, 3), seed=st.integers(0, 2**31 - 1))
def test_each_epoch_is_one_permutation_and_padding_comes_last(blocks: int, batch: int, epochs: int, seed: int) -> None:
    order = Order(blocks=blocks, global_batch_size=batch, epochs=epochs, max_steps=None, seed=seed)
    stream = np.concatenate([order.step(step) for step in range(order.total_steps)])
    assert len(stream) - blocks * epochs < batch
    for epoch in range(epochs):
        assert sorted(stream[epoch * blocks : (epoch + 1) * blocks]) == list(range(blocks))
    assert (stream[blocks * epochs :] == -1).all()
    # A position is found without those before it, in any order.
    again = Order(blocks=blocks, global_batch_size=batch, epochs=epochs, max_steps=None, seed=seed)
    last = order.total_steps - 1
    assert again.step(last).tolist() == order.step(last).tolist()
    assert order.epoch(order.total_steps) == epochs


def test_order_is_frozen_and_depends_on_seed_and_epoch() -> None:
    order = Order(blocks=7, global_batch_size=7, epochs=2, max_steps=None, seed=42)
    first, second = order.step(0).tolist(), order.step(1).tolist()
    # The stream of numpy's RandomState does not change between versions (NEP 19); neither may the order of a run.
    assert first == [3, 6, 4, 0, 1, 5, 2]
    assert second != first
    other = Order(blocks=7, global_batch_size=7, epochs=2, max_steps=None, seed=43)
    assert other.step(0).tolist() != first


def test_max_steps_goes_beyond_the_epochs_or_stops_before() -> None:
    order = Order(blocks=5, global_batch_size=4, epochs=1, max_steps=10, seed=1)
    assert order.total_steps == 10
    assert all((order.step(step) >= 0).all() for step in range(10))
    assert Order(blocks=5, global_batch_size=4, epochs=9, max_steps=2, seed=1).total_steps == 2


@given(micro=st.integers(1, 4), world=st.integers(1, 4), accumulation=st.integers(1, 4))
def test_ranks_share_a_batch_without_overlap(micro: int, world: int, accumulation: int) -> None:
    blocks = np.arange(micro * world * accumulation)
    shares = [rank_share(blocks, rank=r, world_size=world, micro_batch_size=micro) for r in range(world)]
    assert {share.shape for share in shares} == {(accumulation, micro)}
    assert sorted(np.concatenate([share.ravel() for share in shares])) == blocks.tolist()
