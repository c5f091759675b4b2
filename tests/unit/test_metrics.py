"""What training tells: metrics.jsonl, the log, and real event files of TensorBoard and W&B, over a requeue."""

from __future__ import annotations

import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from fullft_cluster.config import Config, OutputConfig
from fullft_cluster.config_load import resolve
from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.rundir import RunDir, read_lines
from fullft_cluster.train import metrics, tracking
from fullft_cluster.train.evaluation import Evaluation

KEY = "sentinel" * 5
"""What stands for an API key: forty characters, as W&B's are, which no file may hold."""


def make_job(path: Path, attempt: int, *report_to: str) -> Any:
    run = RunDir(path)
    if attempt == 1:
        run.make()
    resolved = resolve({"model": "tiny", "backend": "local"}, [], None)
    plan = make_plan(resolved.config, load_model("tiny"), resolved.cluster, Data(rows=100))
    output: Any = OutputConfig(report_to=report_to)  # type: ignore[arg-type]
    config = msgspec.structs.replace(Config(model="tiny"), output=output)
    return SimpleNamespace(run=run, attempt=attempt, plan=plan, config=config)


def train(job: Any, first: int, last: int, *, evaluate: tuple[int, ...] = (), total: int = 10) -> None:
    """Log the steps `first` .. `last` as an attempt does; the loss of a step is the same in each attempt."""
    trackers = tracking.Trackers()
    trackers.start(job, first - 1)
    told = metrics.Metrics(job, load_model("tiny"), total, trackers)
    if first - 1 in evaluate:  # made up for after a resume
        told.write_evaluation(first - 1, Evaluation(loss=2.0, labels=50, seconds=0.1), best=True, finished="")
    for step in range(first, last + 1):
        told.add(tokens=300, padded_tokens=400, seconds=2.0)
        told.write({"step": step, "loss": 10.0 / step, "lr": 1e-3, "grad_norm": 0.5, "epoch": 0.1 * step})
        if step in evaluate:
            told.write_evaluation(step, Evaluation(loss=2.0, labels=50, seconds=0.1), best=True, finished="")
    trackers.close()


def test_lines_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))  # seconds: each step takes 4, of which 2 compute
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(metrics, "peak_memory_gib", lambda: 1.5)
    monkeypatch.setattr(metrics, "peak_flops", lambda plan: 1e9)
    train(make_job(tmp_path / "run", 1), 1, 2, evaluate=(2,))
    first, second, evaluation = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert first["tokens_per_second"] == 150
    assert first["tokens_per_second_with_padding"] == 200
    assert first["mfu"] == pytest.approx(150 * metrics.flops_per_token(load_model("tiny"), 2048, recompute=False) / 1e9)
    assert (first["eta_seconds"], second["eta_seconds"]) == (36.0, 32.0), "saves and evaluations are in it"
    assert (second["step"], second["total_steps"], second["memory_gib"], second["attempt"]) == (2, 10, 1.5, 1)
    kept = {key: evaluation[key] for key in ("step", "eval_loss", "perplexity", "eval_tokens", "eval_seconds")}
    assert kept == {"step": 2, "eval_loss": 2.0, "perplexity": pytest.approx(7.389056), "eval_tokens": 50,
                    "eval_seconds": 0.1}  # fmt: skip
    assert "loss" not in evaluation
    said = capsys.readouterr().out.splitlines()
    mfu = f"MFU {second['mfu']:.1%}"
    assert said[1] == (
        "step 2/10 | loss 5.0000 | lr 0.001 | gradient norm 0.5 | 150 tokens/s (200 with padding) | "
        f"{mfu} | 1.5 GiB | 32s left"
    )
    assert said[2] == "evaluation at step 2: loss 2.0000 | perplexity 7.39 | 50 tokens in 0.1 s | the best so far"


def test_early_stopping_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path / "run", 1)
    told = metrics.Metrics(job, load_model("tiny"), 10, tracking.Trackers())
    told.write_evaluation(4, Evaluation(loss=2.0, labels=5, seconds=0.1), best=False, finished="early stopping: why")
    assert capsys.readouterr().out.splitlines()[-1] == "early stopping: why"
    assert next(read_lines(job.run.metrics))["finished"] == "early stopping: why"


def test_tensorboard_shows_each_step_once_after_a_requeue(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_job(tmp_path / "run", 1, "tensorboard"), 1, 6, evaluate=(4, 6))  # killed; its last checkpoint is of 4
    train(make_job(tmp_path / "run", 2, "tensorboard"), 5, 10, evaluate=(6, 10))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, 11))
    assert [event.step for event in found.Scalars("eval/loss")] == [4, 6, 10]
    assert found.Scalars("train/loss")[4].value == 2.0
    expected = {f"train/{name}" for name in ("lr", "grad_norm", "epoch", "tokens_per_second", "memory_gib")}
    assert {*expected, "eval/perplexity", "eval/tokens"} <= set(found.Tags()["scalars"])


# --- W&B


class FakeRun:
    """What is asked of a run at W&B."""

    url, offline = "https://wandb.example/run", False

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def define_metric(self, name: str, **options: Any) -> None:
        assert options in ({}, {"step_metric": "train/global_step", "step_sync": True})

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def finish(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the package that records what it is asked for."""
    fake: Any = types.ModuleType("wandb")
    fake.inits, fake.rows, fake.fails, fake.ids = [], [], set(), set()

    def init(**options: Any) -> FakeRun:
        fake.inits.append(options)
        assert options["id"] not in fake.ids, "wandb's process: the run ID is in use"
        fake.ids.add(options["id"])
        if options.get("mode", "online") in fake.fails:
            raise ConnectionError("no route to host\nand a long story")
        return FakeRun(fake.rows)

    fake.init, fake.teardown, fake.Settings = init, fake.ids.clear, SimpleNamespace
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake


def test_wandb_has_one_run_over_requeues_and_each_step_once(tmp_path: Path, wandb: Any) -> None:
    train(make_job(tmp_path / "run", 1, "wandb"), 1, 6, evaluate=(4,))
    train(make_job(tmp_path / "run", 2, "wandb"), 5, 10, evaluate=(4, 6, 10))
    first, second = wandb.inits
    assert first["id"] == second["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert first["resume"] == "allow"
    assert (first["name"], first["dir"]) == ("run", str(tmp_path / "run"))
    assert set(first["config"]) == {"model", "data", "train", "resources"}
    steps = [(row["train/global_step"], "eval/loss" in row) for row in wandb.rows]
    assert [step for step, of_evaluation in steps if not of_evaluation] == list(range(1, 11))
    assert [step for step, of_evaluation in steps if of_evaluation] == [4, 6, 10]


def test_a_network_that_fails_ends_no_training(
    tmp_path: Path, wandb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.fails = {"online"}
    train(make_job(tmp_path / "run", 1, "wandb"), 1, 2)
    assert [options.get("mode") for options in wandb.inits] == [None, "offline"]
    assert len(wandb.rows) == 2
    assert "W&B cannot be reached (no route to host); the run is kept for `wandb sync`" in capsys.readouterr().out

    def fail(self: FakeRun, values: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(FakeRun, "log", fail)
    train(make_job(tmp_path / "other", 1, "wandb"), 1, 3)
    assert capsys.readouterr().out.count("wandb takes no more metrics (ConnectionError: gone); training goes on") == 1
    wandb.fails = {"online", "offline"}
    train(make_job(tmp_path / "third", 1, "wandb"), 1, 3)
    assert len(list(read_lines(tmp_path / "third" / "metrics.jsonl"))) == 3


def test_an_upload_that_does_not_end_is_not_waited_for(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    over = threading.Event()
    monkeypatch.setattr(FakeRun, "finish", lambda self: over.wait(60))
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.01)
    train(make_job(tmp_path / "run", 1, "wandb"), 1, 1)
    over.set()


def test_a_package_that_is_missing_is_said_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        tracking.check_installed(make_job(tmp_path / "run", 1, "tensorboard", "wandb").config)
    assert [problem.where for problem in caught.value.problems] == ["output.report_to"] * 2
    assert "the package wandb is not installed" in str(caught.value)
    assert "fullft-cluster[tracking]" in str(caught.value)
    tracking.check_installed(Config())
    # Before GPUs are held.
    from fullft_cluster.train.prepare import prepare_run

    run = RunDir(tmp_path / "prepared")
    run.make()
    run.config.write_text("output: {report_to: [wandb]}\n")
    with pytest.raises(UsageError, match="the package wandb is not installed"):
        prepare_run(str(run.path))


def logged_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format behind a header of 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def test_real_wandb_offline_over_a_requeue_keeps_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `tracking` is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    train(make_job(tmp_path / "run", 1, "wandb"), 1, 6, evaluate=(4,))
    train(make_job(tmp_path / "run", 2, "wandb"), 5, 8, evaluate=(8,))
    steps: list[int] = []
    ids = set()
    for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in logged_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "train/loss" in row:
                steps.append(int(row["train/global_step"]))
    assert steps == list(range(1, 9))
    assert ids == {json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
