"""Whole runs with a validation set: evaluated on schedule, ended early, their best weights kept, through a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Shape, Training

from fullft_cluster.rundir import read_lines
from fullft_cluster.train.data import IGNORE, PackedData

pytestmark = pytest.mark.distributed

EVAL_STEPS = 3
KEY = "sentinel" * 5
"""What stands for W&B's API key, which has forty characters, too."""

# Rank 0 hangs where best/ of the third evaluation is renamed into place, when the older one has made room for it.
HANG = """
import os, time
if os.environ["RANK"] == "0":
    real, seen = os.rename, []
    def rename(source, target, *args, **options):
        if str(target).endswith("/best"):
            seen.append(1)
            if len(seen) == 3:
                open("{marker}", "w").close()
                time.sleep(600)
        return real(source, target, *args, **options)
    os.rename = rename
"""


@pytest.fixture(scope="module")
def prepared_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Training:
    """A run that learns a few rows so fast that the loss of the others soon rises."""
    training = Training(tmp_path_factory.mktemp("evaluated") / "run", cache, Shape(max_steps=24, rows=60))
    training.config["data"]["validation_fraction"] = 0.2
    training.config["train"] |= {"eval_steps": EVAL_STEPS, "early_stopping_patience": 1, "learning_rate": 2e-2}
    training.config["output"]["save_steps"] = 4
    training.write_files()
    training.prepare()
    return training


@pytest.fixture(scope="module")
def undisturbed(prepared_run: Training, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = prepared_run.copy(tmp_path_factory.mktemp("undisturbed") / "run")
    assert training.train() == [0, 0], training.log()
    return training


def evaluations(training: Training) -> list[tuple[int, float]]:
    return [(line["step"], line["eval_loss"]) for line in read_lines(training.run.metrics) if "eval_loss" in line]


def marker(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / "fullft_cluster.json").read_bytes())
    return result


def test_it_ends_early_as_finished_with_the_best_weights_kept(undisturbed: Training) -> None:
    found = evaluations(undisturbed)
    last = found[-1][0]
    assert [step for step, _ in found] == list(range(EVAL_STEPS, last + 1, EVAL_STEPS))
    assert last < 24, "it did not come to its last step"
    best = min(found, key=lambda one: one[1])
    assert best[0] == last - EVAL_STEPS, "patience is 1"
    kept = marker(undisturbed.run.best)
    assert (kept["step"], kept["eval_loss"]) == best
    assert marker(undisturbed.run.export)["step"] == last
    report = undisturbed.report()
    assert (report["kind"], report["step"], report["committed_step"]) == ("done", last, last)
    expected = f"early stopping: 1 evaluation without a better loss; the best is {best[1]:.4f} of step {best[0]}"
    assert report["message"] == expected
    assert expected in undisturbed.log()
    assert list(read_lines(undisturbed.run.metrics))[-1]["finished"] == expected


def test_the_best_weights_have_the_loss_that_was_logged(undisturbed: Training) -> None:
    """By plain transformers, a block at a time, from what from_pretrained loads."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(undisturbed.run.best, dtype=torch.float32)
    data = PackedData(Path(json.loads(undisturbed.run.data.read_bytes())["validation"]["cache"]))
    total, labels = 0.0, 0
    for block in range(len(data)):
        batch = data.batch(np.array([block]))
        ids, positions, wanted = (
            torch.from_numpy(array) for array in (batch.input_ids, batch.position_ids, batch.labels)
        )
        with torch.no_grad():
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1]
        total += float(F.cross_entropy(logits, wanted[0, 1:], ignore_index=IGNORE, reduction="sum"))
        labels += int((wanted[0, 1:] != IGNORE).sum())
    assert len(data) % 4, "two ranks with micro-batches of 2 have an uneven last batch"
    assert marker(undisturbed.run.best)["eval_loss"] == pytest.approx(total / labels, rel=1e-5)


def test_a_kill_while_the_best_weights_are_written(
    undisturbed: Training, prepared_run: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt writes them from the checkpoint and ends as if nothing had happened; trackers too."""
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")
    pytest.importorskip("wandb", reason="the extra `tracking` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    training = prepared_run.copy(tmp_path / "run")
    training.config["output"]["report_to"] = ["tensorboard", "wandb"]
    training.write_files()
    marker_file = tmp_path / "hangs"
    (tmp_path / "sitecustomize.py").write_text(HANG.format(marker=marker_file))
    training.start(sitecustomize=tmp_path)
    training.until(marker_file.exists)
    training.kill()
    assert not training.run.best.exists()
    assert training.train() == [0, 0], training.log()
    assert training.report()["resumed_from"] == 3 * EVAL_STEPS
    assert evaluations(training) == evaluations(undisturbed), "at the same steps, to the last bit"
    assert training.losses() == undisturbed.losses()
    assert marker(training.run.best) == marker(undisturbed.run.best)
    for directory in ("best", "export"):
        assert same_weights(training.run.path / directory, undisturbed.run.path / directory)
    assert training.report()["message"] == undisturbed.report()["message"]
    events = EventAccumulator(str(training.run.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == sorted(training.losses())
    assert [event.step for event in events.Scalars("eval/loss")] == [step for step, _ in evaluations(training)]
    assert len(list(training.run.path.glob("wandb/offline-run-*"))) == 2
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holders == [], "the key is in no file"
    assert os.environ["WANDB_API_KEY"] == KEY


def same_weights(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors")) != []
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
