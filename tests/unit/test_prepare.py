"""train.prepare: once, resumable, and nothing half-written is ever taken for a cache."""

from __future__ import annotations

import json
import threading
from fnmatch import fnmatch
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from chat_tokenizers import CHATML, LLAMA_2, make_tokenizer  # noqa: E402
from prepared_runs import documents_of, make_run, sample_text  # noqa: E402

from fullft_cluster.config import Config  # noqa: E402
from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.resources import share  # noqa: E402
from fullft_cluster.train import cache_writer, data, prepare  # noqa: E402
from fullft_cluster.train.data import PackedData  # noqa: E402

SAMPLE = share("configs") / "sample"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return transformers.AutoTokenizer.from_pretrained(str(SAMPLE / "tokenizer"))


def test_prepares_once_and_says_where(tmp_path: Path, tokenizer: object) -> None:
    text = sample_text(50)
    run = make_run(tmp_path, text)
    made = prepare.prepare_run(str(run.path))
    assert made == json.loads(run.data.read_text())
    cache = PackedData(Path(made["cache"]))
    assert (made["rows"], made["blocks"], made["seq_len"]) == (50, len(cache), 32)
    assert (made["validation"], made["end_of_turn_id"], made["dropped"]) == (None, None, {})
    assert made["formats"] == {"text": 50}
    ids = cache.batch(np.arange(len(cache))).input_ids.ravel()
    assert np.count_nonzero(ids == 2) == np.count_nonzero(ids == 1) == 50, "<s> and </s> about each row"
    whole = [document for document in documents_of(Path(made["cache"])) if document[0] == 1]
    texts = [tokenizer.decode(document).removesuffix("</s>") for document in whole]  # type: ignore[attr-defined]
    rows = [f"<s>{json.loads(line)['text']}" for line in text.splitlines()]
    assert all(any(row.startswith(text) for row in rows) for text in texts)
    # Again: the same cache, untouched. Another text or length: another.
    before = {path: path.stat().st_mtime_ns for path in cache_files(tmp_path)}
    assert prepare.prepare_run(str(run.path)) == made
    assert {path: path.stat().st_mtime_ns for path in cache_files(tmp_path)} == before
    (tmp_path / "train.jsonl").write_text(text + '{"text": "one more"}\n')
    assert prepare.prepare_run(str(run.path))["key"] != made["key"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_rows_are_held_out_by_what_they_say(tmp_path: Path) -> None:
    """More rows, in another order, move none of the others; a row that is there twice is on one side."""
    lines = sample_text(200).splitlines(keepends=True)
    run = make_run(tmp_path, "".join(lines[:100]) + lines[7], validation_fraction=0.2, seq_len=512)
    made = prepare.prepare_run(str(run.path))
    held_out = documents_of(Path(made["validation"]["cache"]))
    train = documents_of(Path(made["cache"]))
    assert 10 <= made["validation"]["rows"] <= 30
    assert made["rows"] + made["validation"]["rows"] == 101
    assert not {tuple(document) for document in held_out} & {tuple(document) for document in train}
    more = make_run(tmp_path, "".join(reversed(lines)), name="more", validation_fraction=0.2, seq_len=512)
    both = prepare.prepare_run(str(more.path))
    assert {tuple(d) for d in held_out} <= {tuple(d) for d in documents_of(Path(both["validation"]["cache"]))}
    assert {tuple(d) for d in train} <= {tuple(d) for d in documents_of(Path(both["cache"]))}


def test_named_validation_rows(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(sample_text(7))
    settings = {"validation": str(tmp_path / "other.jsonl")}
    made = prepare.prepare_run(str(make_run(tmp_path, sample_text(20), **settings).path))
    assert (made["rows"], made["validation"]["rows"]) == (20, 7)
    assert len(PackedData(Path(made["validation"]["cache"]))) == made["validation"]["blocks"]
    both = make_run(tmp_path, sample_text(20), name="both", validation_fraction=0.1, **settings)
    with pytest.raises(UsageError, match=r"set beside data\.validation"):
        prepare.prepare_run(str(both.path))
    few = make_run(tmp_path, sample_text(3), name="few", validation_fraction=0.001)
    with pytest.raises(UsageError, match=r"0\.001 of 3 rows is none"):
        prepare.prepare_run(str(few.path))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made["key"]]


def test_rows_that_are_dropped_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"prompt": "a", "completion": " b"}\n{"no": 1}\n' + json.dumps({"prompt": "x " * 50, "completion": " y"})
    run = make_run(tmp_path, text, on_bad_row="skip", long_rows="truncate", seq_len=20)
    made = prepare.prepare_run(str(run.path))
    assert made["dropped"] == {"bad row": 1, "nothing to learn": 1}
    words = "\n".join(prepare.in_words(made))
    assert f"dropped, bad row: 1 rows ({tmp_path}/train.jsonl:2)" in words
    assert f"dropped, nothing to learn: 1 rows ({tmp_path}/train.jsonl:3)" in words
    nothing = make_run(tmp_path, text.splitlines()[2], name="nothing", long_rows="drop", seq_len=20)
    with pytest.raises(UsageError, match=r"no row with something to learn: 1 longer than train.seq_len.*jsonl:1"):
        prepare.prepare_run(str(nothing.path))


def test_chats_end_as_data_json_says(tmp_path: Path) -> None:
    """The token that closes turns is there for the export; rows that the template refuses are named, all at once."""
    chat = [{"role": "user", "content": "What is 2 and 3?"}, {"role": "assistant", "content": "It is 5."}]
    odd = [{"role": "system", "content": "Be brief."}, *chat]
    text = "".join(json.dumps({"messages": messages}) + "\n" for messages in (chat, odd, chat, odd))
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "llama.jinja").write_text(LLAMA_2)
    for name, template, skip in (
        ("ml", "chatml", "error"),
        ("refused", "llama", "error"),
        ("skipped", "llama", "skip"),
    ):
        path = str(tmp_path / f"{template}.jinja")
        run = make_run(tmp_path, text, name=name, chat_template=path, on_bad_row=skip, seq_len=128)
        run.config.write_text(run.config.read_text() + f"tokenizer: {make_tokenizer(tmp_path / 'tokenizer')}\n")
        if name == "refused":
            with pytest.raises(UsageError) as error:
                prepare.prepare_run(str(run.path))
            assert [p.where.rpartition(":")[2] for p in error.value.problems] == ["2", "4"]
            assert f"no such role: system ({path}:1)" in str(error.value)
            continue
        made = prepare.prepare_run(str(run.path))
        expected = (4, 2049, {}) if name == "ml" else (2, 2, {"bad row": 2})
        assert (made["rows"], made["end_of_turn_id"], made["dropped"]) == expected


def test_packing_can_be_left_out(tmp_path: Path) -> None:
    made = prepare.prepare_run(str(make_run(tmp_path, sample_text(9), packing=False, seq_len=256).path))
    assert (made["rows"], made["blocks"]) == (9, 9)


def cache_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_bad_rows_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, '{"text": "good"}\n{"txt": "bad"}\n{"text": "good"}\n{"text": ""}\n')
    monkeypatch.setattr("sys.argv", ["prepare", "--run", str(run.path)])
    assert prepare.main() == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/train.jsonl:2: row has no text" in error
    assert f"{tmp_path}/train.jsonl:4: text is empty" in error
    assert "Traceback" not in error
    report = json.loads((run.path / "exits" / "prepare.json").read_text())
    assert (report["exit_code"], report["kind"], len(report["errors"])) == (2, "data", 2)
    assert not run.data.exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_half_written_cache_is_never_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, '{"text": "some words to learn"}\n' * 9)
    made = prepare.prepare_run(str(run.path))
    cache = Path(made["cache"])
    whole = (cache / data.TOKENS).read_bytes()
    for damage in ((cache / data.COMPLETE).unlink, lambda: (cache / data.TOKENS).write_bytes(b"")):
        damage()
        with pytest.raises(UsageError, match="not a complete data cache"):
            PackedData(cache)
        assert prepare.prepare_run(str(run.path)) == made
        assert (cache / data.TOKENS).read_bytes() == whole


def test_two_preparations_of_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have built theirs before either is renamed: one wins, both are right."""
    runs = [make_run(tmp_path, '{"text": "some words to learn"}\n' * 9, name=name) for name in ("one", "two")]
    both_built = threading.Barrier(2)
    publish = cache_writer.publish
    monkeypatch.setattr(cache_writer, "publish", lambda work, final: (both_built.wait(60), publish(work, final)))
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda run=run: found.append(prepare.prepare_run(str(run.path))["cache"]))
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2
    assert len(set(found)) == 1
    assert data.is_complete(Path(found[0]))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Path(found[0]).name]


def test_a_cache_published_between_two_looks_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, work = tmp_path / "final", tmp_path / "work"
    for path in (final, work):
        path.mkdir()
        (path / "by").write_text(path.name)
    looks = iter((False, True, True))  # absent at the first look
    monkeypatch.setattr(cache_writer.data, "is_complete", lambda path: next(looks))
    cache_writer.publish(work, final)
    assert (final / "by").read_text() == "final"


def test_a_directory_that_is_no_run_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "typo", tmp_path):
        monkeypatch.setattr("sys.argv", ["prepare", "--run", str(path)])
        assert prepare.main() == 2
        assert f"{path}: is no run: there is no config.yaml in it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_config_is_told_with_its_line(tmp_path: Path, tokenizer: object) -> None:
    run = make_run(tmp_path, '{"text": "words"}\n')
    run.config.write_text("model: tiny\ntrain:\n  seqlen: 3\n")
    with pytest.raises(UsageError, match=r"config\.yaml:3: .*seqlen"):
        prepare.prepare_run(str(run.path))
    assert json.loads((run.path / "exits" / "prepare.json").read_text())["exit_code"] == 2


@pytest.mark.parametrize(
    ("on_hub", "fetched"),
    [
        (("model.safetensors", "pytorch_model.bin"), ["model.safetensors"]),
        (("pytorch_model-00001-of-00002.bin", "training_args.bin"), ["pytorch_model-00001-of-00002.bin"]),
    ],
)
def test_bin_files_are_fetched_only_where_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_hub: tuple[str, ...], fetched: list[str]
) -> None:
    import huggingface_hub

    def snapshot_download(reference: str, *, allow_patterns: list[str]) -> str:
        assert reference == "org/model"
        for name in (*on_hub, "config.json"):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    prepare.fetch_weights(Config(weights="org/model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", *fetched]
