"""FSDP learns what ZeRO-3 learns; each engine goes on at another number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Shape, Training, run_ranks

from fullft_cluster import checkpoints
from fullft_cluster.plan import Plan

pytestmark = pytest.mark.distributed

STEPS = 6
SWITCH = 3
"""The step after which the number of processes changes."""

ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"engine": "fsdp"},
    "zero3": {"zero_stage": 3},
    "zero1": {"zero_stage": 1},
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Training:
    """A run whose rows are a prompt and a completion, which alone is learnt: labels are few here and many there."""
    training = Training(tmp_path_factory.mktemp("ragged") / "run", cache, Shape(max_steps=STEPS))
    path = Path(training.config["data"]["train"])
    rows = []
    for number, line in enumerate(path.read_text().splitlines()):
        words = json.loads(line)["text"].split(" ")
        cut = len(words) * (1 + number % 7) // 8
        rows.append({"prompt": " ".join(words[:cut]), "completion": " " + " ".join(words[cut:])})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training.prepare()
    return training


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ragged: Training) -> dict[str, Training]:
    """Runs without a break by two ranks; FSDP's that is stopped and resumed; and each engine's that two ranks begin and
    one goes on with (ZeRO-2 is ZeRO-1's code)."""
    folder = tmp_path_factory.mktemp("engines")
    made = {}
    kinds = ["fsdp stopped", "fsdp whole", "zero3 whole", *(f"{engine} switched" for engine in ENGINES)]
    for kind in kinds:
        engine, what = kind.split()
        training = ragged.copy(folder / f"{engine}-{what}")
        training.config["resources"] |= ENGINES[engine]
        training.config["train"]["max_steps"] = STEPS
        training.config["output"]["save_steps"] = 100
        training.write_files()
        made[kind] = training
    probe = Path(__file__).with_name("engines_probe.py")
    run_ranks(folder, probe, [str(training.run.path) for training in made.values()])
    switched = [training for kind, training in made.items() if kind.endswith("switched")]
    for training in switched:
        training.config["resources"]["gpus_per_node"] = 1
        training.write_files()
    run_ranks(folder, probe, [str(training.run.path) for training in switched], ranks=1)
    return made


def test_the_labels_are_ragged(ragged: Training) -> None:
    from fullft_cluster.train.data import PackedData

    data = PackedData(Path(json.loads(ragged.run.data.read_text())["cache"]))
    labels = [data.labels_in(np.array([block])) for block in range(len(data))]
    assert min(labels) < max(labels) / 3


def test_fsdp_learns_what_zero3_learns(runs: dict[str, Training]) -> None:
    expected, found = runs["zero3 whole"], runs["fsdp whole"]
    assert sorted(found.losses()) == list(range(1, STEPS + 1))
    for step, values in expected.losses().items():
        assert np.allclose(values, found.losses()[step], rtol=TOLERANCE, atol=0), (step, values, found.losses()[step])
    weights = found.weights()
    assert weights.keys() == expected.weights().keys() != set()
    assert all(np.allclose(weights[name], value, atol=1e-5) for name, value in expected.weights().items())


def test_fsdp_resumes_to_the_last_bit(runs: dict[str, Training]) -> None:
    whole, stopped = runs["fsdp whole"], runs["fsdp stopped"]
    assert stopped.losses() == whole.losses()
    assert len(stopped.run.metrics.read_text().splitlines()) == STEPS, "no step was computed twice"
    weights = stopped.weights()
    assert all(weights[name].equal(value) for name, value in whole.weights().items())


@pytest.mark.parametrize("engine", ENGINES)
def test_goes_on_at_another_number_of_processes(runs: dict[str, Training], engine: str) -> None:
    """Nothing is lost or learnt twice: the optimizer's state, its step and the decay of each group go along.

    DeepSpeed's loading of a universal checkpoint gets the last two wrong under ZeRO-3.
    """
    training, whole = runs[f"{engine} switched"], runs["zero3 whole"]
    assert sorted(training.losses()) == list(range(1, STEPS + 1))
    for step, values in whole.losses().items():
        assert np.allclose(values, training.losses()[step], rtol=TOLERANCE / 10, atol=0), step
    weights = training.weights()
    assert all(np.allclose(weights[name], value, atol=1e-5) for name, value in whole.weights().items())
    found = checkpoints.list_checkpoints(training.run.checkpoints)
    assert [(one.step, one.manifest().world_size) for one in found] == [(SWITCH, 2), (STEPS, 1)]
    assert not list(training.run.checkpoints.glob(".*")), "what was converted for it is gone"


def test_fsdps_checkpoint_is_as_large_as_planned(runs: dict[str, Training]) -> None:
    training = runs["fsdp whole"]
    plan = Plan.from_json(training.run.plan.read_bytes())
    (found,) = checkpoints.list_checkpoints(training.run.checkpoints)
    files = {entry.path: entry for entry in found.manifest().files}
    assert {path: files[path].rank for path in files if path.startswith("fsdp/")} == {
        "fsdp/.metadata": 0,
        "fsdp/__0_0.distcp": 0,
        "fsdp/__1_0.distcp": 1,
    }
    excess = sum(entry.bytes for entry in files.values()) - plan.checkpoint_gb * 1e9
    # Beside the numbers: some 1.5 kB for each tensor and rank, the random generators' states, the index.
    assert 0 < excess < 500_000, files


def test_what_the_probe_saw(runs: dict[str, Training]) -> None:
    """What only shows within the processes: see engines_probe.py."""
    seen = json.loads((runs["fsdp whole"].run.path / "seen.json").read_text())
    assert "was written by ZeRO-3, and FSDP cannot go on from it" in seen["other_engine"]
    assert seen["deepspeed_imported"] is False
