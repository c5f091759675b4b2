"""What the planner says a GPU and a host hold is what DeepSpeed's tensors are made of, to the byte.

Two processes on CPUs train a small LLaMA whose sizes are odd, so that padding shows, from our own deepspeed.json; only
torch's AdamW stands in for DeepSpeed's CPU Adam, which would have to be compiled first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_run import Shape, Training, run_ranks

from fullft_cluster.deepspeed_json import zero_optimization
from fullft_cluster.model import ModelSpec, load_model
from fullft_cluster.plan import Offload, Plan, Precision, ZeroStage
from fullft_cluster.planner import sharding
from fullft_cluster.planner.setup import Setup

pytestmark = pytest.mark.distributed

RANKS = 2
GPU = "a100-80gb"
ODD = {
    "vocab_size": 2047, "hidden_size": 63, "intermediate_size": 127, "head_dim": 16, "num_attention_heads": 3,
    "num_key_value_heads": 1,
}  # fmt: skip
LIMIT = 60_000
"""stage3_max_live_parameters of one case: less than the model has."""

Case = tuple[ZeroStage, Offload, Precision, int, dict[str, int]]
CASES: dict[str, Case] = {
    # what is sharded, what is offloaded, precision, hpZ, other limits
    "zero3": (3, "none", "bf16", 1, {}),
    "zero3-fp32": (3, "none", "fp32", 1, {}),
    "zero3-limits": (3, "none", "bf16", 1, {"stage3_max_live_parameters": LIMIT, "stage3_max_reuse_distance": LIMIT}),
    "zero3-optimizer": (3, "optimizer", "bf16", 1, {}),
    "zero3-parameters": (3, "parameters", "bf16", 1, {}),
    "zero2": (2, "none", "bf16", 1, {}),
    "zero2-optimizer": (2, "optimizer", "bf16", 1, {}),
    "zero1": (1, "none", "bf16", 1, {}),
    "zero3-hpz": (3, "none", "bf16", RANKS, {}),  # last: its process group stays
}
SHARDED = [name for name, case in CASES.items() if case[0] == 3]
FLAT = [name for name, case in CASES.items() if case[0] < 3]


def zero(name: str) -> dict[str, Any]:
    stage, offload, _, hpz, limits = CASES[name]
    return {**zero_optimization(ODD["hidden_size"], GPU, offload, stage, hpz), **limits}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Training]:
    """All cases, trained one after the other by the same two processes."""
    folder = tmp_path_factory.mktemp("allocation")
    made: dict[str, Training] = {}
    for name, (_, _, precision, _, _) in CASES.items():
        training = Training(folder / name, cache, Shape(world_size=RANKS, max_steps=2, hf=ODD))
        training.config["train"]["precision"] = precision
        training.write_files()
        config = json.loads(training.run.deepspeed.read_text())
        config["zero_optimization"] = zero(name)
        training.run.deepspeed.write_text(json.dumps(config))
        training.run.data.write_text(json.dumps({"seq_len": training.shape.seq_len}))
        made[name] = training
    paths = [str(training.run.path) for training in made.values()]
    run_ranks(folder, Path(__file__).with_name("allocation_probe.py"), paths)
    return made


def model(training: Training) -> ModelSpec:
    return load_model(training.config["model"])


def setup(training: Training, name: str) -> Setup:
    """Return the planner's view of the case, as if it ran on GPUs."""
    plan = Plan.from_json(training.run.plan.read_bytes())
    _, offload, precision, _, _ = CASES[name]
    return Setup(
        model=model(training), gpu=GPU, gpus=RANKS, nodes=1, micro_batch_size=plan.micro_batch_size,
        seq_len=plan.seq_len, activation_checkpointing=plan.activation_checkpointing, precision=precision,
        offload=offload, zero=zero(name), accumulation=plan.gradient_accumulation_steps,
    )  # fmt: skip


def reports(training: Training) -> list[dict[str, Any]]:
    return [json.loads((training.run.path / f"allocation-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture
def case(runs: dict[str, Training], name: str) -> tuple[Setup, list[dict[str, Any]]]:
    return setup(runs[name], name), reports(runs[name])


@pytest.mark.parametrize("name", CASES)
def test_nothing_large_is_left_out(case: tuple[Setup, list[dict[str, Any]]]) -> None:
    """Whatever DeepSpeed keeps between two steps belongs to a part."""
    for report in case[1]:
        assert report["rest"] == []


@pytest.mark.parametrize("name", CASES)
def test_states(case: tuple[Setup, list[dict[str, Any]]], name: str) -> None:
    """Shards of parameters, gradients and optimizer states, with their padding."""
    planned, measured = sharding.states(case[0]), case[1]
    e, elements = case[0].element_bytes, sharding.shard(case[0])
    for report in measured:
        if case[0].offload == "parameters":
            assert "parameters" not in planned
            assert report["parameters"] == e * elements
        else:
            assert report["parameters"] == planned["parameters"]
        if case[0].offload == "none":
            assert report["optimizer_states"] == planned["optimizer_states"]
            assert report.get("gradients") == planned.get("gradients")
            assert "fp32_gradients" not in report
        else:
            assert "optimizer_states" not in planned
            assert "gradients" not in planned
            held = report["optimizer_states"] + report["fp32_gradients"]
            assert held == (sharding.OPTIMIZER_BYTES + sharding.FP32) * elements
        if name.startswith("zero3"):
            assert report["gradients"] == e * elements
            assert report["secondary_parameters"] == planned.get("secondary_parameters", 0)


@pytest.mark.parametrize("name", CASES)
def test_buckets(case: tuple[Setup, list[dict[str, Any]]]) -> None:
    """ZeRO-3 has one bucket, always; 1 and 2 have two in the backward pass where it overlaps."""
    for report in case[1]:
        assert report["reduce_bucket"] == sharding.bucket(case[0])


@pytest.mark.parametrize("name", SHARDED)
def test_persistent_parameters(case: tuple[Setup, list[dict[str, Any]]]) -> None:
    """Norms: each is gathered into a whole number of shards."""
    planned, measured = case
    for report in measured:
        assert report["persistent_parameters"] == sharding.persistent(planned)


@pytest.mark.parametrize("name", SHARDED)
def test_gathered_parameters(case: tuple[Setup, list[dict[str, Any]]], name: str) -> None:
    """A small model is whole from the third forward pass on; a limit holds, but for the tensor that computes."""
    planned = sharding.gathered_elements(case[0], "backward")
    persistent = sum(times * t.elements for t, times in sharding.tensors(case[0].model) if sharding.is_vector(t))
    for report in case[1]:
        if name == "zero3-limits":
            assert LIMIT < report["gathered_elements"] <= planned < case[0].model.parameters
            assert planned < 1.1 * report["gathered_elements"]
        else:
            assert report["gathered_elements"] + persistent == planned == case[0].model.parameters


@pytest.mark.parametrize("name", [name for name in SHARDED if CASES[name][1] == "none"])
def test_optimizer_step(case: tuple[Setup, list[dict[str, Any]]]) -> None:
    """The gradients of a sub-group in fp32, beside their flattened copy; or the norm of the largest shard in fp64."""
    e, largest = case[0].element_bytes, -(-case[0].model.largest_tensor // RANKS)
    for report in case[1]:
        elements = report["fp32_gradient_of_a_sub_group"] // sharding.FP32
        assert sharding.optimizer_step(case[0]) == max((e + sharding.FP32) * elements, 8 * largest)


@pytest.mark.parametrize("name", FLAT)
def test_gradients_of_flat_groups(case: tuple[Setup, list[dict[str, Any]]]) -> None:
    """Between backward pass and step: the whole gradients of all tensors that reach into this rank's partition."""
    planned, measured = case
    for report in measured:
        # Offloaded ones lie on the host, where micro-steps add them up.
        assert (report["gradients_in_backward"] == 0) == (planned.offload == "optimizer")
    held = [report["gradients_in_backward"] or report["gradients"] for report in measured]
    expected = planned.element_bytes * sharding.reaching(planned.model, RANKS)
    if planned.offload == "optimizer":  # on the host there is a tensor for each, and none for the group's padding
        assert 0 <= expected - max(held) < planned.element_bytes * sharding.STAGE2_ALIGNMENT * RANKS
    else:
        assert max(held) == expected
