"""A run that tokenises while training, under FSDP, evaluated and with best weights kept: a stop changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_run import Shape, Training, run_ranks

from fullft_cluster.rundir import read_lines
from fullft_cluster.train.data import is_complete, read_meta

pytestmark = pytest.mark.distributed

STEPS, EVAL_STEPS = 6, 3
"""The stop comes in step 3, before its evaluation."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Training]:
    folder = tmp_path_factory.mktemp("streamed")
    whole = Training(folder / "whole", cache, Shape(max_steps=STEPS))
    whole.config["data"] |= {"streaming": True, "validation_fraction": 0.2}
    whole.config["train"]["eval_steps"] = EVAL_STEPS
    whole.config["output"]["save_steps"] = 100
    whole.config["resources"]["engine"] = "fsdp"
    whole.write_files()
    whole.prepare()
    made = {"whole": whole, "stopped": whole.copy(folder / "stopped")}
    probe = Path(__file__).with_name("streamed_probe.py")
    run_ranks(folder, probe, [str(training.run.path) for training in made.values()])
    return made


def evaluations(training: Training) -> list[tuple[int, float]]:
    return [(line["step"], line["eval_loss"]) for line in read_lines(training.run.metrics) if "eval_loss" in line]


def test_nothing_but_an_index_was_prepared(runs: dict[str, Training]) -> None:
    cache = Path(json.loads(runs["whole"].run.data.read_bytes())["cache"])
    assert is_complete(cache) and read_meta(cache).streaming
    assert not (cache / "tokens.bin").exists()


def test_a_stop_changes_nothing(runs: dict[str, Training]) -> None:
    whole, stopped = runs["whole"], runs["stopped"]
    losses = whole.losses()
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS][0] < losses[1][0], "it learns"
    assert stopped.losses() == losses
    assert len([line for line in read_lines(stopped.run.metrics) if "loss" in line]) == STEPS, "no step came twice"
    assert [step for step, _ in evaluations(whole)] == [EVAL_STEPS, STEPS]
    assert evaluations(stopped) == evaluations(whole), "the next attempt makes up for the one that the stop came before"
    marks = [json.loads((one.run.best / "fullft_cluster.json").read_bytes()) for one in (whole, stopped)]
    assert marks[0]["step"] == marks[1]["step"] == min(evaluations(whole), key=lambda one: one[1])[0]
    assert marks[0]["eval_loss"] == marks[1]["eval_loss"]
    weights = stopped.weights()
    assert all(weights[name].equal(value) for name, value in whole.weights().items())
    kept = [sorted((one.run.best).glob("*.safetensors"))[0].read_bytes() for one in (whole, stopped)]
    assert kept[0] == kept[1]
