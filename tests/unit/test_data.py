"""train.data and train.prepare: nothing dropped, nothing half-written, and an order that needs no replay."""

from __future__ import annotations

import itertools
import json
import threading
from fnmatch import fnmatch
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
transformers = pytest.importorskip("transformers")

import yaml  # noqa: E402
from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fullft_cluster.config import Config  # noqa: E402
from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.resources import share  # noqa: E402
from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.train import data, prepare  # noqa: E402
from fullft_cluster.train.data import IGNORE, Order, PackedData, rank_share  # noqa: E402

SAMPLE = share("configs") / "sample"
PAD = 3


def packed(directory: Path, documents: list[list[int]], seq_len: int) -> PackedData:
    directory.mkdir(parents=True, exist_ok=True)
    meta = data.CacheMeta(key="k", dtype="uint16", tokens=0, rows=0, blocks=0, seq_len=seq_len, pad_id=PAD)
    meta = prepare.build(directory, documents, meta, vocab_size=1000)
    (directory / data.META).write_bytes(data.msgspec.json.encode(meta))
    (directory / data.COMPLETE).touch()
    return PackedData(directory)


documents = st.lists(st.lists(st.integers(4, 999), min_size=1, max_size=40), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(documents=documents, seq_len=st.integers(2, 50))
def test_every_token_is_learnt_once_and_no_document_predicts_another(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], seq_len: int
) -> None:
    ends = list(itertools.accumulate(map(len, documents)))
    starts = {0, *ends}
    assume(any(place not in starts and place % seq_len for place in range(ends[-1])))  # else nothing can be learnt
    cache = packed(tmp_path_factory.mktemp("cache"), documents, seq_len)
    batch = cache.batch(np.arange(len(cache)))
    total = sum(map(len, documents))
    assert batch.input_ids.shape == (-(-total // seq_len), seq_len)
    ids, labels, positions = batch.input_ids.ravel(), batch.labels.ravel(), batch.position_ids.ravel()
    assert ids[:total].tolist() == [token for document in documents for token in document], "nothing is dropped"
    assert (ids[total:] == PAD).all()
    assert (labels[total:] == IGNORE).all()
    offset = 0
    for document in documents:
        for place in range(offset, offset + len(document)):
            starts = place == offset or place % seq_len == 0
            assert labels[place] == (IGNORE if starts else ids[place])
            assert positions[place] == (0 if starts else positions[place - 1] + 1)
        offset += len(document)
    everything = np.arange(len(cache))
    assert cache.labels_in(everything) == np.count_nonzero(labels != IGNORE)
    assert [cache.labels_in(np.array([b])) for b in everything] == (batch.labels != IGNORE).sum(axis=1).tolist()
    assert cache.tokens_in(everything) == total
    assert cache.tokens_in(np.array([-1])) == cache.labels_in(np.array([-1])) == 0


def test_the_last_label_of_a_document_is_its_eos_though_pad_is_eos(tmp_path: Path) -> None:
    """Masking goes by length, never by id: else a model whose pad is its EOS never learns to stop."""
    eos = PAD
    cache = packed(tmp_path, [[5, 6, eos], [7, eos]], seq_len=8)
    batch = cache.batch(np.array([0]))
    assert batch.input_ids.tolist() == [[5, 6, eos, 7, eos, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[IGNORE, 6, eos, IGNORE, eos, IGNORE, IGNORE, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]


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


# --- prepare


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return transformers.AutoTokenizer.from_pretrained(str(SAMPLE / "tokenizer"))


def make_run(tmp_path: Path, text: str | bytes, **train: object) -> RunDir:
    path = tmp_path / "train.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    run = RunDir(tmp_path / "runs" / "run")
    run.make()
    config = {
        "model": "tiny", "weights": "random", "train": {"seq_len": 32, **train},
        "data": {"train": str(path), "cache_dir": str(tmp_path / "cache")},
    }  # fmt: skip
    run.config.write_text(yaml.safe_dump(config))
    return run


def test_prepares_once_and_says_where(tmp_path: Path, tokenizer: object) -> None:
    text = "".join((SAMPLE / "train.jsonl").open().readlines()[:50])
    run = make_run(tmp_path, text)
    made = prepare.prepare_run(str(run.path))
    assert made == json.loads(run.data.read_text())
    cache = PackedData(Path(made["cache"]))
    assert (made["rows"], made["blocks"], made["seq_len"]) == (50, len(cache), 32)
    ids = cache.batch(np.arange(len(cache))).input_ids.ravel()[: made["tokens"]]
    assert np.count_nonzero(ids == 2) == np.count_nonzero(ids == 1) == 50, "<s> and </s> about each row"
    first = ids[: list(ids).index(2)]
    assert tokenizer.decode(first[1:]) == json.loads(text.splitlines()[0])["text"]  # type: ignore[attr-defined]
    # Again: the same cache, untouched. Another text or length: another.
    before = {path: path.stat().st_mtime_ns for path in cache_files(tmp_path)}
    assert prepare.prepare_run(str(run.path)) == made
    assert {path: path.stat().st_mtime_ns for path in cache_files(tmp_path)} == before
    (tmp_path / "train.jsonl").write_text(text + '{"text": "one more"}\n')
    assert prepare.prepare_run(str(run.path))["key"] != made["key"]
    assert not list((tmp_path / "cache").glob(".*"))


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


def test_two_preparations_of_the_same_key(tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have built theirs before either is renamed: one wins, both are right."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "some words to learn"}\n' * 9)
    both_built = threading.Barrier(2)
    publish = prepare._publish
    pids = iter((101, 102))
    monkeypatch.setattr(prepare.os, "getpid", lambda: next(pids, 103))
    monkeypatch.setattr(prepare, "_publish", lambda work, final: (both_built.wait(60), publish(work, final)))
    found: list[Path] = []

    def work() -> None:
        found.append(prepare.make_cache(tmp_path / "cache", path, tokenizer, seq_len=8, vocab_size=2048))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(found)) == 1
    assert data.is_complete(found[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0].name]


def test_a_cache_published_between_two_looks_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, work = tmp_path / "final", tmp_path / "work"
    for path in (final, work):
        path.mkdir()
        (path / "by").write_text(path.name)
    looks = iter((False, True, True))  # absent at the first look
    monkeypatch.setattr(prepare.data, "is_complete", lambda path: next(looks))
    prepare._publish(work, final)
    assert (final / "by").read_text() == "final"


def test_tokenizer_that_does_not_fit_the_model(tmp_path: Path, tokenizer: object) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "some words to learn"}\n')
    with pytest.raises(UsageError, match="outside the model's vocabulary of 100"):
        prepare.make_cache(tmp_path / "cache", path, tokenizer, seq_len=8, vocab_size=100)
    assert list((tmp_path / "cache").iterdir()) == []


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
