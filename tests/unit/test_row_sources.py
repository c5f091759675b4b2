"""row_sources, row_scan: where rows come from, how often they are seen, and what a login node says of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster import row_scan
from fullft_cluster.config import DataConfig, Source
from fullft_cluster.config_load import resolve
from fullft_cluster.config_paths import absolute
from fullft_cluster.errors import UsageError
from fullft_cluster.row_scan import scan_data
from fullft_cluster.row_sources import data_name, files_of, sources_of
from fullft_cluster.samples import Sample
from fullft_cluster.train.sources import read_samples


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(data: DataConfig, *, validation: bool = False, seed: int = 0) -> list[str]:
    rows = read_samples(data, validation=validation, seed=seed)
    return [row.completion for row in rows if isinstance(row, Sample)]


def told(**data: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        scan_data(DataConfig(**data))
    return [str(problem) for problem in caught.value.problems]


def test_one_of_train_and_sources_is_given() -> None:
    assert told() == ["data.train: is missing. Write --data train.jsonl."]
    both = told(train="a.jsonl", sources=(Source(path="b.jsonl"),), fields={"promt": "x"})
    assert "data.train: is given beside data.sources" in both[0]
    assert "data.fields.promt: is no field of ours. Did you mean 'prompt'?" in both[1]
    assert "data.sources[1].fields.a:" in told(sources=(Source(path="b"), Source(path="b", fields={"a": "b"})))[0]


def test_a_directory_is_all_its_files_sorted_whatever_their_kind(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", {"text": "b"})
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    write(tmp_path / "sub" / "c", {"text": "c"})
    for name in ("README.md", "LICENSE", "_SUCCESS", ".hidden.json", ".git/config", "sub/.cache/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no rows")
    (tmp_path / "part-3.json").write_bytes(b"")
    data = DataConfig(train=str(tmp_path))
    assert [path.name for path in files_of(sources_of(data)[0])] == ["a.json", "b.jsonl", "c"]
    assert texts(data) == ["a", "b", "c"]
    assert scan_data(data).notes == ["data: text, 3 rows"]
    (tmp_path / "notes.txt").write_text("no rows\n")
    assert told(train=str(tmp_path))[0].startswith(f"{tmp_path}/notes.txt:1: not JSON")


def test_a_directory_with_a_split_for_tests_is_told(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.json", {"text": "a"})
    write(tmp_path / "data" / "test-00000-of-00001.json", {"text": "b"})
    assert scan_data(DataConfig(train=str(tmp_path))).notes[1] == (
        f"data: {tmp_path}/data/test-00000-of-00001.json is trained on too, and its name is that of a split for tests"
    )
    assert len(scan_data(DataConfig(train=str(tmp_path / "data" / "test-00000-of-00001.json"))).notes) == 1


def test_weights_say_how_often_rows_are_seen(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(400)]
    path = write(tmp_path / "a.jsonl", *rows)
    once = write(tmp_path / "b.jsonl", {"text": "b"})
    data = DataConfig(sources=(Source(path=path, weight=2.5), Source(path=once)))
    seen = Counter(texts(data))
    assert seen["b"] == 1
    counts = Counter(count for text, count in seen.items() if text != "b")
    assert set(counts) == {2, 3}
    assert 140 < counts[3] < 260
    assert texts(data)[:400] == [row["text"] for row in rows]  # whole turns: copies lie far apart
    assert Counter(texts(data, seed=1)) != seen

    half = DataConfig(sources=(Source(path=path, weight=0.5),))
    chosen = texts(half)
    assert 140 < len(chosen) < 260
    write(tmp_path / "a.jsonl", {"text": "new"}, *reversed(rows))
    assert set(texts(half)) - {"new"} == set(chosen)  # stable when rows are added and reordered


def test_streams_of_several_sources_are_mixed_and_end_together(tmp_path: Path) -> None:
    long = write(tmp_path / "a.jsonl", *[{"text": "a"}] * 300)
    short = write(tmp_path / "b.jsonl", *[{"text": "b"}] * 50)
    data = DataConfig(sources=(Source(path=long), Source(path=short, weight=2)), streaming=True)
    found = "".join(texts(data))
    assert Counter(found) == {"a": 300, "b": 100}
    for start in range(0, 400, 40):
        assert 8 <= found[start : start + 40].count("b") <= 12
    whole = DataConfig(sources=data.sources)
    assert "".join(texts(whole)) == "a" * 300 + "b" * 100
    write(tmp_path / "b.jsonl", {"x": 1})
    with pytest.raises(UsageError, match=r"b\.jsonl: has no row that can be used"):
        texts(DataConfig(sources=data.sources, streaming=True, on_bad_row="skip"))


def test_bad_rows_of_a_source_that_is_seen_twice_are_counted_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"x": 1})
    data = DataConfig(sources=(Source(path=path, weight=2),), on_bad_row="skip")
    assert len(list(read_samples(data, validation=False))) == 3
    assert scan_data(data).rows == 2


def test_each_source_has_a_format_of_its_own(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    paths = [write(tmp_path / "a.jsonl", {"q": "a", "a": "b"}), write(tmp_path / "b.jsonl", chat)]
    sources = (Source(path=paths[0], fields={"question": "q", "answer": "a"}), Source(path=paths[1], weight=3))
    scan = scan_data(DataConfig(sources=sources))
    assert scan.rows == 4
    assert scan.text_bytes == len("Question: a\nAnswer: b") + 3 * len("ab")
    assert scan.notes == [
        f"data: {paths[0]}: question_answer, 1 row",
        f"data: {paths[1]}: messages, 1 row, weight 3",
    ]


def test_validation_is_read_by_the_same_road(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", *[{"text": f"{number:03}"} for number in range(100)])
    held = write(tmp_path / "v.jsonl", {"text": "v"})
    data = DataConfig(train=train, validation=held)
    assert texts(data, validation=True) == ["v"]
    assert texts(DataConfig(train=train), validation=True) == []
    assert scan_data(data).notes == ["data: text, 100 rows", "validation: text, 1 row"]
    (tmp_path / "v.jsonl").write_text('{"text": null}')
    assert told(train=train, validation=held) == [f'{held}:1: text is null. Write {{"text": "..."}}.']
    assert scan_data(DataConfig(train=train, validation_fraction=0.1)).rows == 90


def test_rows_that_are_passed_over_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, *[{"text": None}] * 9)
    notes = scan_data(DataConfig(train=path, on_bad_row="skip")).notes
    assert notes[0] == "data: text, 1 row, 9 passed over"
    assert notes[1:] == [
        f'data: passed over: {path}:{line}: text is null. Write {{"text": "..."}}.' for line in (2, 3, 4)
    ]
    assert len(told(train=path)) == 9


def test_of_large_sources_the_head_is_checked_and_the_rows_are_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", *[{"text": f"{number:06}"} for number in range(5000)])
    monkeypatch.setattr(row_scan, "MAX_BYTES", 1000)
    monkeypatch.setattr(row_scan, "HEAD_BYTES", 2000)
    scan = scan_data(DataConfig(train=path))
    assert scan.rows == pytest.approx(5000, rel=0.02)
    assert scan.text_bytes == pytest.approx(30_000, rel=0.02)
    assert scan.notes == [f"data: text, about {scan.rows:,} rows"]
    write(tmp_path / "a.jsonl", {"a": 1}, *[{"text": "x"}] * 500)
    assert told(train=path)[0].startswith(f"{path}:1: row has no text")


def test_what_a_login_node_cannot_read_is_not_known_and_said(tmp_path: Path) -> None:
    hub = scan_data(DataConfig(train="org/name"))
    assert hub.rows is None
    assert hub.notes == [
        "data: org/name: a data set on the hub: its rows are counted, and checked, when the data is prepared"
    ]
    away = scan_data(DataConfig(train="/mnt/a.jsonl"), lambda path: path.startswith("/mnt"))
    assert (away.rows, away.text_bytes) == (None, None)


def test_paths_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "here" / "rows", {"text": "a"})
    given = "[{path: a.jsonl}, {path: org/name, subset: main}, {path: here/rows}, {path: org/name.jsonl}]"
    flags = {"data.validation": "org/name", "data.chat_template": "chat/template"}
    data = absolute(resolve(flags, [f"data.sources={given}"], None)).config.data
    assert [source.path for source in data.sources] == [
        f"{tmp_path}/a.jsonl", "org/name", f"{tmp_path}/here/rows", f"{tmp_path}/org/name.jsonl",
    ]  # fmt: skip
    assert data.sources[1].subset == "main"
    assert (data.validation, data.chat_template) == ("org/name", f"{tmp_path}/chat/template")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (DataConfig(train="/a/gsm8k.train.jsonl"), "gsm8k.train"),
        (DataConfig(train="org/name-v1.5"), "name-v1.5"),
        (DataConfig(sources=(Source(path="/a/b.parquet"),)), "b"),
        (DataConfig(sources=(Source(path="/a/b.json"), Source(path="c"))), "b-and-more"),
        (DataConfig(), "data"),
    ],
)
def test_a_run_is_named_by_its_data(data: DataConfig, name: str) -> None:
    assert data_name(data) == name


def test_plan_and_submit_say_what_the_rows_were_taken_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fullft_cluster.cli.main import cli

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", {"text": "a", "question": "b", "answer": "c"}, {"text": "d"})
    tiny = ["--model", "tiny", "--backend", "local"]
    given = [*tiny, "--data", "a.jsonl", "--on-bad-row", "skip", "--validation-fraction", "0.5"]
    done = CliRunner().invoke(cli, ["plan", *given], catch_exceptions=False)
    assert done.stderr.startswith(
        "data: question_answer, 1 row, 1 passed over\ndata: passed over: a.jsonl:2: row is text"
    )
    asked = ["--set", "data.sources=[{path: a.jsonl, weight: 2}]", "--format", "text", "--dry-run"]
    done = CliRunner().invoke(cli, ["submit", *tiny, *asked], catch_exceptions=False)
    assert "data: text, 2 rows, weight 2\n" in done.stderr
    assert "runs/tiny-a --backend local" in done.stdout
