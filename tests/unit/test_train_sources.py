"""train.sources: Parquet through pyarrow, data sets of the hub through `datasets.load_dataset`, as JSON is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.config import DataConfig, Source
from fullft_cluster.errors import UsageError
from fullft_cluster.row_scan import scan_data
from fullft_cluster.row_sources import RowSource
from fullft_cluster.samples import BadRow, Sample

pytest.importorskip("pyarrow", reason="the train extra is not installed")
pytest.importorskip("datasets", reason="the train extra is not installed")

from fullft_cluster.train.sources import hub_fingerprint, hub_rows, read_samples

ROWS = [{"prompt": f"p{number}", "completion": "c", "nothing": None, "n": number} for number in range(2500)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def samples(*, validation: bool = False, **data: Any) -> list[Sample | BadRow]:
    return list(read_samples(DataConfig(**data), validation=validation))


def refused(*, validation: bool = False, **data: Any) -> str:
    with pytest.raises(UsageError) as caught:
        samples(validation=validation, **data)
    return str(caught.value)


def test_parquet_is_read_whatever_its_name_and_in_order(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.jsonl", ROWS)
    found = samples(train=path)
    assert found[0] == Sample(f"{path}: row 1", "prompt_completion", "p0", "c")
    assert found[-1] == Sample(f"{path}: row 2500", "prompt_completion", "p2499", "c")
    assert len(found) == 2500
    mixed = samples(sources=(Source(path=path), Source(path=path, weight=2)), streaming=True)
    assert len(mixed) == 7500
    wheres = [row.where for row in mixed if isinstance(row, Sample)]
    assert wheres.index(f"{path}: row 1250") > 1800


def test_chats_of_parquet_are_those_of_json(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": chat, "text": None}, {"messages": [], "text": None}, {"messages": None, "text": "x"}]
    path = parquet(tmp_path / "chats.parquet", rows)
    lines = tmp_path / "chats.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    first, empty, other = samples(train=path, on_bad_row="skip")
    assert first == Sample(f"{path}: row 1", "messages", messages=tuple(chat))
    assert isinstance(empty, BadRow)
    assert str(empty.problem) == f"{path}: row 2: messages is empty. Take the row out."
    assert isinstance(other, BadRow)
    assert "row is text, and the rows of this source are messages" in other.problem.what
    from_lines = samples(train=str(lines), on_bad_row="skip")
    assert [type(row) for row in from_lines] == [Sample, BadRow, BadRow]
    assert isinstance(from_lines[0], Sample)
    assert from_lines[0].messages == first.messages


def test_damaged_parquet_is_told(tmp_path: Path) -> None:
    path = Path(parquet(tmp_path / "a.parquet", ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    assert f"{path}: row 1: Parquet cannot be read" in refused(train=str(path))
    with pytest.raises(UsageError, match="Parquet cannot be read"):
        scan_data(DataConfig(train=str(path)))
    path.write_bytes(whole[:1000] + bytes(3000) + whole[4000:])
    assert f"{path}: row 1: Parquet cannot be read" in refused(train=str(path))
    assert "has no rows" in refused(train=parquet(tmp_path / "empty.parquet", ROWS[:0] or [{}][:0]))


def test_a_login_node_with_pyarrow_knows_the_rows_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "mixed" / "a.parquet", [*ROWS, {"prompt": "a", "completion": None, "n": 0}])
    (tmp_path / "mixed" / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    scan = scan_data(DataConfig(train=str(tmp_path / "mixed"), on_bad_row="skip"))
    assert scan.notes[0] == "data: prompt_completion, 2,501 rows, 1 passed over"
    assert f"{path}: row 2501: completion is null" in scan.notes[1]
    monkeypatch.setattr("fullft_cluster.row_probe.find_spec", lambda name: None)
    without = scan_data(DataConfig(train=path))
    assert without.rows is None
    assert "Parquet: its rows are counted, and checked, when the data is prepared" in without.notes[0]


# --- the hub: what load_dataset does for an id, it does for a directory of the same layout


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the layout of a data set of the hub, and a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    parquet(tmp_path / "org" / "name" / "data" / "train-00000-of-00001.parquet", ROWS)
    parquet(tmp_path / "org" / "name" / "data" / "test-00000-of-00001.parquet", ROWS[:3])
    return tmp_path


def dataset(**more: Any) -> RowSource:
    return RowSource(**({"key": "data.train", "path": "org/name"} | more))


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_a_data_set(hub: Path, streaming: bool) -> None:
    train = list(hub_rows(dataset(), streaming=streaming))
    assert [row.where for row in train[::2499]] == ["org/name[train]: row 1", "org/name[train]: row 2500"]
    assert [row.row for row in train] == ROWS
    assert streaming or sum(row.size for row in train) == pytest.approx(1)
    held = list(hub_rows(dataset(split=None), streaming=streaming))
    assert [row.where for row in held] == [f"org/name[test]: row {number}" for number in (1, 2, 3)]
    with pytest.raises(UsageError, match=r"plit.*Write split and subset beside its path in data.sources"):
        list(hub_rows(dataset(split="nope"), streaming=streaming))


def test_subsets_of_a_data_set(hub: Path) -> None:
    card = (
        "---\nconfigs:\n- config_name: main\n  data_files: data/train*\n- config_name: other\n  data_files: data/test*"
    )
    (hub / "org" / "name" / "README.md").write_text(f"{card}\n---\n")
    assert len(list(hub_rows(dataset(subset="main")))) == 2500
    assert len(list(hub_rows(dataset(subset="other")))) == 3
    with pytest.raises(UsageError) as caught:
        list(hub_rows(dataset()))
    assert str(caught.value) == (
        "data.train: data set org/name has several subsets: ['main', 'other']."
        " Write data.sources: [{path: org/name, subset: main}]."
    )
    with pytest.raises(UsageError, match=r"has no split `validation` or `test`; it has train\. Name a file"):
        list(hub_rows(dataset(subset="main", split=None)))


def test_a_data_set_in_the_cache_needs_no_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = datasets.load_dataset("parquet", data_files=str(hub / "org/name/data/train*"), cache_dir=str(hub / "made"))
    (arrow,) = made["train"].cache_files
    cached = hub / "cache" / "org___cached" / "default" / "0.0.0" / ("a" * 40)
    Path(arrow["filename"]).parent.rename(cached.parent.mkdir(parents=True) or cached)
    (cached / "parquet-train.arrow").rename(cached / "cached-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text()) | {"dataset_name": "cached"}
    info["splits"]["train"]["dataset_name"] = "cached"
    (cached / "dataset_info.json").write_text(json.dumps(info))
    found = samples(sources=(Source(path="org/cached", weight=2),), fields={"prompt": "prompt"})
    assert len(found) == 5000
    assert found[0] == Sample("org/cached[train]: row 1", "prompt_completion", "p0", "c")
    assert hub_fingerprint(dataset(path="org/cached")) == f"org/cached default train {'a' * 40}"


def test_a_data_set_that_was_downloaded_needs_no_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub / "hub" / "datasets--org--loaded"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub / "hub"))
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (hub / "org" / "name" / "data").rename(folder / "snapshots" / "c0ffee" / "data")
    assert [row.row for row in hub_rows(dataset(path="org/loaded"))] == ROWS
    assert hub_fingerprint(dataset(path="org/loaded")) == "org/loaded default train c0ffee"


def test_a_data_set_that_cannot_be_had_is_told_with_the_way_to_it(hub: Path) -> None:
    told = refused(train="org/absent")
    assert told.startswith("data.train: data set org/absent cannot be loaded: Couldn't ")
    assert "hf download --repo-type dataset org/absent" in told
    assert "there is no directory nowhere here" in refused(train="nowhere/rows")
    (hub / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(UsageError, match=r"data.train: data set org/absent cannot be loaded"):
        hub_fingerprint(dataset(path="org/absent"))
    with pytest.raises(UsageError, match=r"data.validation: data set org/absent cannot be loaded"):
        list(read_samples(DataConfig(train="a.jsonl", validation="org/absent"), validation=True))
