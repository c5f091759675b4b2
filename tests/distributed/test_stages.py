"""However the work is sharded and offloaded, the same is learnt; each way stops, resumes to the last bit, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Training, run_ranks

from fullft_cluster import checkpoints
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan

pytestmark = pytest.mark.distributed

STEPS = 8
WAYS: dict[str, dict[str, Any]] = {
    "zero3": {},
    "zero2": {"zero_stage": 2},
    "zero1": {"zero_stage": 1},
    "zero2-optimizer": {"zero_stage": 2, "offload": "optimizer"},
    "zero3-parameters": {"offload": "parameters"},
    "zero3-hpz": {"hpz": True},  # last: its process group stays
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared: Training) -> dict[str, tuple[Training, Training]]:
    """Each way as a run without a break, and as one that was stopped and resumed."""
    folder = tmp_path_factory.mktemp("stages")
    made = {}
    for way, resources in WAYS.items():
        pair = []
        for kind in ("whole", "stopped"):
            training = prepared.copy(folder / f"{way}-{kind}")
            training.config["resources"] |= {"zero_stage": 3, **resources}
            training.config["train"]["max_steps"] = STEPS
            training.config["output"]["save_steps"] = 6
            training.write_files()
            pair.append(training)
        made[way] = tuple(pair)
    paths = [str(training.run.path) for pair in made.values() for training in pair]
    run_ranks(folder, Path(__file__).with_name("stages_probe.py"), paths)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_resumes_to_the_last_bit(runs: dict[str, tuple[Training, Training]], way: str) -> None:
    whole, stopped = runs[way]
    assert sorted(whole.losses()) == list(range(1, STEPS + 1))
    assert stopped.losses() == whole.losses()
    assert len(stopped.run.metrics.read_text().splitlines()) == STEPS, "no step was computed twice"
    weights, expected = stopped.weights(), whole.weights()
    assert weights.keys() == expected.keys() != set()
    assert all(weights[name].equal(expected[name]) for name in weights)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "zero3"])
def test_the_same_is_learnt(runs: dict[str, tuple[Training, Training]], way: str) -> None:
    """Losses, gradient norms and weights are ZeRO-3's, but for the order of sums."""
    reference, other = runs["zero3"][0], runs[way][0]
    for step, values in reference.losses().items():
        assert np.allclose(values, other.losses()[step], rtol=2e-5), (step, values, other.losses()[step])
    weights = other.weights()
    assert weights.keys() == reference.weights().keys()
    assert all(np.allclose(weights[name], value, atol=1e-5) for name, value in reference.weights().items())


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_are_good_and_as_large_as_planned(runs: dict[str, tuple[Training, Training]], way: str) -> None:
    training = runs[way][1]
    plan = Plan.from_json(training.run.plan.read_bytes())
    assert plan.zero_stage == WAYS[way].get("zero_stage", 3)
    found = checkpoints.list_checkpoints(training.run.checkpoints)
    assert [(one.step, one.good) for one in found] == [(6, True), (8, True)]
    files = {entry.path: entry.bytes for entry in found[-1].manifest().files}
    assert any(path.startswith(f"zero{plan.zero_stage}/") for path in files)
    # What is no weight or state of one: the random generators', the names and shapes of the model's tensors.
    excess = sum(files.values()) - plan.checkpoint_gb * 1e9
    assert 0 < excess < 200_000, files


@pytest.mark.parametrize("way", ["zero2", "zero3-parameters"])
def test_the_export_loads(runs: dict[str, tuple[Training, Training]], way: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    training = runs[way][1]
    model, info = AutoModelForCausalLM.from_pretrained(
        training.run.export, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == load_model(training.config["model"]).parameters


@pytest.mark.parametrize("way", WAYS)
def test_the_export_is_what_deepspeed_reads(runs: dict[str, tuple[Training, Training]], way: str) -> None:
    """Its own script joins the weights of a checkpoint; ours reads them one by one."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    training = runs[way][1]
    (shards,) = (training.run.checkpoints / f"step-{STEPS}").glob("zero*/")
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(shards.parent), tag=shards.name)
    ours = training.weights()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
