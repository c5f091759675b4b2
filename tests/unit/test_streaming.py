"""train.streaming: the blocks of data that is tokenised while training, found anew in any order, from any step."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("transformers")
pytest.importorskip("trl")

import yaml  # noqa: E402

from fullft_cluster.config import Config  # noqa: E402
from fullft_cluster.config_load import read_config  # noqa: E402
from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.resources import share  # noqa: E402
from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.train import chunks, prepare  # noqa: E402
from fullft_cluster.train.data import IGNORE, PackedData  # noqa: E402
from fullft_cluster.train.streaming import KEPT_CHUNKS, OPEN_CHUNKS, StreamedData, StreamOrder  # noqa: E402

LINES = (share("configs") / "sample" / "train.jsonl").read_text().splitlines(keepends=True)
STEPS: dict[str, Any] = {"global_batch_size": 4, "epochs": 2, "max_steps": None, "seed": 3}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SHARD_ROWS", 9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # in this process


def rows_of_every_kind(directory: Path) -> list[dict[str, Any]]:
    """Write 90 rows of JSON lines in two files, 60 of Parquet and 30 of a JSON array; return them as sources."""
    import pyarrow
    import pyarrow.parquet

    (directory / "lines").mkdir(parents=True)
    (directory / "lines" / "a.jsonl").write_text("\ufeff" + "".join(LINES[:50]) + "\n{oops\n")
    (directory / "lines" / "b.jsonl").write_text("".join(LINES[50:90]))
    table = pyarrow.table({"body": [json.loads(line)["text"] for line in LINES[90:150]]})
    pyarrow.parquet.write_table(table, directory / "c.parquet", row_group_size=25)
    (directory / "d.json").write_text(f"[{','.join(LINES[150:180])}]")
    return [
        {"path": str(directory / "lines")}, {"path": str(directory / "c.parquet"), "fields": {"text": "body"}},
        {"path": str(directory / "d.json"), "weight": 1.5},
    ]  # fmt: skip


def make(tmp_path: Path, name: str, **data: Any) -> tuple[dict[str, Any], Config]:
    run = RunDir(tmp_path / "runs" / name)
    run.make()
    settings = {"cache_dir": str(tmp_path / "cache"), "on_bad_row": "skip", **data}
    if not (tmp_path / "rows").exists():
        rows_of_every_kind(tmp_path / "rows")
    train = {"seq_len": 128, "max_steps": 10}
    run.config.write_text(yaml.safe_dump({"model": "tiny", "weights": "random", "train": train, "data": settings}))
    return prepare.prepare_run(str(run.path)), read_config(run.config)


def open_stream(made: dict[str, Any], config: Config) -> tuple[StreamedData, StreamOrder]:
    data = StreamedData(Path(made["cache"]), config)
    return data, data.order(**STEPS)


def documents_of(data: Any, blocks: Any) -> Counter[tuple[int, ...]]:
    """Return every document in some blocks, as its tokens and which of them are learnt."""
    batch = data.batch(blocks)
    found: Counter[tuple[int, ...]] = Counter()
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        starts = [*np.flatnonzero(positions == 0), len(ids)]
        for begin, end in itertools.pairwise(starts):
            if (labels[begin:end] != IGNORE).any():
                found[(*ids[begin:end], -1, *labels[begin:end])] += 1
    return found


def test_the_same_documents_as_from_a_cache(tmp_path: Path) -> None:
    """From lines, Parquet and an array; weighted, with bad rows passed over and rows held out."""
    settings: dict[str, Any] = {"sources": rows_of_every_kind(tmp_path / "rows"), "validation_fraction": 0.1}
    packed, _ = make(tmp_path, "packed", **settings)
    made, config = make(tmp_path, "streamed", streaming=True, **settings)
    assert made["key"] != packed["key"]
    assert (made["streaming"], packed["streaming"]) == (True, False)
    assert (made["rows"], made["labels"], made["dropped"]) == (packed["rows"], packed["labels"], {"bad row": 1})
    assert not list(Path(made["cache"]).glob("tokens.bin"))
    data, order = open_stream(made, config)
    reference = PackedData(Path(packed["cache"]))
    everything = documents_of(data, np.arange(len(data)))
    assert everything == documents_of(reference, np.arange(len(reference)))
    assert len(everything) > 150
    held_out = [PackedData(Path(one["validation"]["cache"])) for one in (made, packed)]
    one, other = (documents_of(cache, np.arange(len(cache))) for cache in held_out)
    assert one == other
    assert sum(one.values()) >= 5
    # What the index says of the blocks is what they hold.
    steps = [order.step(step) for step in range(order.total_steps)]
    for blocks in steps:
        batch = data.batch(blocks)
        assert data.labels_in(blocks) == np.count_nonzero(batch.labels != IGNORE)
    blocks = np.concatenate(steps)
    for epoch in range(2):
        assert sorted(blocks[epoch * len(data) : (epoch + 1) * len(data)]) == list(range(len(data)))
    assert blocks[: len(data)].tolist() != blocks[len(data) : 2 * len(data)].tolist()
    assert (blocks[2 * len(data) :] == -1).all()


def test_a_resume_opens_the_chunks_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those before: no replay. And what it finds is what an undisturbed run would have had."""
    (tmp_path / "all.jsonl").write_text("".join(LINES[:400]))
    made, config = make(tmp_path, "run", train=str(tmp_path / "all.jsonl"), streaming=True)
    whole, order = open_stream(made, config)
    batches = [whole.batch(order.step(step)) for step in range(order.total_steps)]
    loaded: list[int] = []
    load = StreamedData._load
    monkeypatch.setattr(StreamedData, "_load", lambda data, chunk: loaded.append(chunk) or load(data, chunk))
    for step in (order.total_steps - 2, order.total_steps // 3):
        data, again = open_stream(made, config)
        loaded.clear()
        batch = data.batch(again.step(step))
        data._thread.shutdown()
        assert len(again._ends) == 45
        assert 0 < len(loaded) <= 3 * OPEN_CHUNKS
        for name in ("input_ids", "labels", "position_ids"):
            assert (getattr(batch, name) == getattr(batches[step], name)).all()
    # The next ones are made ready before they are asked for.
    data, again = open_stream(made, config)
    data.batch(again.step(0))
    data._thread.shutdown()
    ready = set(data._open)
    assert {int(chunk) for chunk in again._windows(0)[1]} <= ready


def test_a_batch_may_be_of_more_chunks_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small sources: each is a chunk of a block or two."""
    monkeypatch.setattr(chunks, "SHARD_ROWS", 1)
    (tmp_path / "all.jsonl").write_text("".join(LINES[:30]))
    made, config = make(tmp_path, "run", train=str(tmp_path / "all.jsonl"), streaming=True)
    data, order = open_stream(made, config)
    everything = np.arange(len(data))
    assert len(np.unique(order.chunk_of(everything))) > KEPT_CHUNKS
    whole = data.batch(everything)
    assert len(data._open) == KEPT_CHUNKS
    for block in everything:
        assert (data.batch(everything[block : block + 1]).input_ids[0] == whole.input_ids[block]).all()


def test_rows_that_have_changed_are_found(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(LINES[:30]))
    made, config = make(tmp_path, "run", train=str(path), streaming=True)
    path.write_text("".join(LINES[:29]))
    with pytest.raises(UsageError, match="made of files that have changed since"):
        open_stream(made, config)
    path.write_text("".join(reversed(LINES[:30])))  # as long
    data, _ = open_stream(made, config)
    with pytest.raises(UsageError, match="has other rows than when it was prepared"):
        data.batch(np.arange(len(data)))
    with pytest.raises(UsageError, match=r"data\.streaming is set"):
        PackedData(Path(made["cache"]))


def test_bad_rows_are_an_error_unless_skipped(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(LINES[:12]) + "{oops\n" + LINES[12])
    with pytest.raises(UsageError, match=r"all\.jsonl:13: not JSON"):
        make(tmp_path, "run", train=str(path), streaming=True, on_bad_row="error")
    assert list((tmp_path / "cache").iterdir()) == []
    path.write_text("{oops\n")
    with pytest.raises(UsageError, match="has no row that can be used"):
        make(tmp_path, "none", train=str(path), streaming=True)
