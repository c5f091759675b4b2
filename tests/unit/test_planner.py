"""The planner: the sizes that the project promises, exact batches, honest refusals, and properties of every plan."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fullft_cluster.config_load import resolve
from fullft_cluster.errors import DoesNotFitError, UsageError
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan

PARAMETERS = {"7b": 6_738_415_616, "13b": 13_015_864_320, "30b": 32_528_943_616, "65b": 65_285_660_672}


def plan(model: str = "7b", rows: int | None = 5000, **flags: Any) -> Plan:
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    resolved = resolve({"model": model, **dotted}, [], None)
    return make_plan(resolved.config, load_model(model), resolved.cluster, Data(rows=rows))


@pytest.mark.parametrize(
    ("model", "least", "most", "learning_rate"),
    [("7b", 2, 4, 1e-5), ("13b", 4, 8, 5e-6), ("30b", 8, 16, 2e-6), ("65b", 16, 32, 1e-6)],
)
def test_the_four_sizes_on_a100_80gb(model: str, least: int, most: int, learning_rate: float) -> None:
    found = plan(model)
    assert found.model.parameters == PARAMETERS[model]
    assert least <= found.gpus <= most
    assert found.nodes * found.gpus_per_node == found.gpus
    assert found.gpus_per_node <= 8
    assert found.offload == "none"
    assert 32 <= found.global_batch_size <= 128
    assert found.learning_rate == learning_rate
    assert found.memory.gpu.expected_gib <= found.memory.gpu.capacity_gib
    assert found.seq_len == 2048


@pytest.mark.parametrize("model", PARAMETERS)
def test_sixteen_bytes_a_parameter_are_sharded(model: str) -> None:
    found = plan(model)
    parts = found.memory.gpu.parts
    sharded = sum(parts[name] for name in ("parameters", "gradients", "optimizer_states")) * 2**30
    assert sharded == pytest.approx(16 * PARAMETERS[model] / found.gpus, rel=1e-6)


def phase(found: Plan, name: str) -> dict[str, float]:
    return next(phase.parts for phase in found.memory.gpu.phases if phase.name == name)


def test_recomputation_trades_activations() -> None:
    on, off = (
        plan("7b", resources__gpus=8, resources__micro_batch_size=1, resources__activation_checkpointing=x)
        for x in (True, False)
    )
    assert phase(on, "forward")["activations"] < phase(off, "forward")["activations"] / 10
    # Per-layer checkpoints: 2 bytes x sequence x hidden x layers.
    assert phase(on, "forward")["activations"] * 2**30 == pytest.approx(2 * 2048 * 4096 * 32, rel=0.01)
    assert on.time.step_seconds.expected > off.time.step_seconds.expected


def test_activations_have_no_term_in_the_square_of_the_sequence() -> None:
    short, long = (
        plan(
            "7b",
            resources__gpus=8,
            resources__micro_batch_size=1,
            resources__activation_checkpointing=False,
            train__seq_len=s,
        )
        for s in (512, 2048)
    )
    ratio = phase(long, "forward")["activations"] / phase(short, "forward")["activations"]
    assert ratio == pytest.approx(4, rel=0.01)


def test_what_cannot_fit_names_the_shortfall_and_the_nearest_plan() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        plan("65b", resources__max_gpus=4, resources__offload="none")
    text = str(refused.value)
    assert refused.value.exit_code == 3
    assert "GiB short" in text
    nearest = plan("65b")
    assert f"Nearest plan that fits: {nearest.gpus} GPUs ({nearest.nodes} nodes of {nearest.gpus_per_node})" in text


def test_offload_moves_the_optimizer_to_the_host() -> None:
    same = {"resources__gpus": 8, "resources__micro_batch_size": 1, "resources__zero_stage": 3}
    here, there = plan("7b", **same), plan("7b", **same, resources__offload="optimizer")
    assert "optimizer_states" not in there.memory.gpu.parts
    assert there.memory.gpu.expected_gib < here.memory.gpu.expected_gib
    ours, theirs = (next(p for p in x.memory.host.phases if p.name == "forward").gib.expected for x in (here, there))
    assert theirs > ours + 18 * PARAMETERS["7b"] / 2**30, "master weight, moments, fp32 and 16-bit gradients"


def test_offload_on_cpus_is_planned_too() -> None:
    found = plan("tiny", backend="local", resources__offload="optimizer")
    assert "optimizer_states" in found.memory.gpu.parts, "it is the same memory"


@pytest.mark.parametrize(("rows", "epochs"), [(1, 3), (9_999, 3), (10_000, 2), (100_000, 2), (100_001, 1), (None, 3)])
def test_epochs_by_rows(rows: int | None, epochs: int) -> None:
    assert plan(rows=rows).epochs == epochs


@pytest.mark.parametrize(("batch", "gpus", "nearest"), [(30, 8, ("24", "32")), (65, 16, ("64", "80")), (3, 8, ("8",))])
def test_an_indivisible_batch_is_refused_with_the_nearest(batch: int, gpus: int, nearest: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        plan("7b", resources__gpus=gpus, train__global_batch_size=batch)
    assert all(value in str(refused.value) for value in nearest)
    for value in nearest:
        assert plan("7b", resources__gpus=gpus, train__global_batch_size=int(value)).global_batch_size == int(value)


@pytest.mark.parametrize(
    "flags",
    [
        {"resources__gpus": 8, "resources__max_gpus": 4},
        {"resources__gpus": 8, "resources__nodes": 2, "resources__gpus_per_node": 8},
        {"resources__gpus_per_node": 9},
        {"resources__gpus": 11},
        {"train__seq_len": 2049},
        {"resources__nodes": 10**6},
    ],
)
def test_contradictions(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan("7b", **flags)


def test_execution_does_not_change_mathematics() -> None:
    """Micro-batch, nodes, offload and recomputation leave batch, learning rate, epochs and sequence as they are."""
    base = plan("7b")
    for flags in (
        {"resources__gpus": 8},
        {"resources__gpus": 32},
        {"resources__micro_batch_size": 1},
        {"resources__offload": "optimizer"},
        {"resources__gpus": 8, "resources__activation_checkpointing": False},
    ):
        other = plan("7b", **flags)
        for name in (
            "global_batch_size",
            "learning_rate",
            "epochs",
            "seq_len",
            "seed",
            "weight_decay",
            "max_grad_norm",
        ):
            assert getattr(other, name) == getattr(base, name), (flags, name)


def test_the_lead_covers_a_step_and_a_checkpoint() -> None:
    from fullft_cluster.hardware import load_cluster

    found = plan("65b")
    speed = load_cluster("a100-80gb").filesystem_write_gb_per_second
    assert found.signal_lead_seconds >= found.time.step_seconds.high + found.checkpoint_gb / speed
    assert plan("7b").signal_lead_seconds < found.signal_lead_seconds


def test_disk_is_what_is_kept_one_in_flight_and_the_export() -> None:
    found = plan("7b", output__save_total_limit=3)
    assert found.disk_gb == pytest.approx(4 * found.checkpoint_gb + found.export_gb)
    best = plan(output__save_total_limit=3, data__validation_fraction=0.1)
    assert best.disk_gb == pytest.approx(4 * best.checkpoint_gb + 3 * best.export_gb)
    off = plan(output__save_total_limit=3, data__validation_fraction=0.1, output__save_best=False)
    assert off.disk_gb == found.disk_gb


def test_every_quantity_explains_itself() -> None:
    for quantity in plan("65b").quantities:
        assert quantity.formula and quantity.source
        assert quantity.origin in ("given", "derived", "default", "measured")
    names = [quantity.name for quantity in plan("65b").quantities]
    assert len(names) == len(set(names))


def test_the_memory_model_reads_the_deepspeed_json_that_ships() -> None:
    from fullft_cluster.deepspeed_json import deepspeed_json

    found, model = plan("30b"), load_model("30b")
    zero = deepspeed_json(found)["zero_optimization"]
    parts = {name: value * 2**30 for name, value in phase(found, "backward").items()}
    assert parts["reduce_bucket"] == pytest.approx(2 * zero["reduce_bucket_size"])
    live = zero["stage3_max_live_parameters"] + model.largest_tensor
    assert parts["gathered_parameters"] == pytest.approx(2 * live, rel=1e-6)


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_widespread_rule_of_thumb_stands_beside_our_formula(model: str) -> None:
    shown = {quantity.name: quantity for quantity in plan(model).quantities}
    ours, rule = shown["activations_without_recomputation"], shown["activations_by_rule_of_thumb"]
    assert isinstance(ours.value, float) and isinstance(rule.value, float)
    assert 90 < rule.value / ours.value < 1000
    assert "arxiv.org/abs/2205.05198" in ours.source


combinations = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["7b", "13b", "30b", "65b", "tiny", "small"]),
        "resources.gpus": st.sampled_from([None, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]),
        "resources.micro_batch_size": st.sampled_from([None, 1, 2, 3, 8]),
        "resources.activation_checkpointing": st.sampled_from([None, True, False]),
        "resources.offload": st.sampled_from([None, "none", "optimizer", "parameters"]),
        "resources.zero_stage": st.sampled_from([None, 1, 2, 3]),
        "resources.objective": st.sampled_from(["fewest-gpus", "least-cost", "fastest"]),
        "train.global_batch_size": st.one_of(st.none(), st.integers(1, 4096)),
        "train.seq_len": st.integers(1, 2048),
        "train.precision": st.sampled_from(["bf16", "fp32"]),
        "cluster": st.sampled_from(["a100-80gb", "a100-40gb"]),
    }
)


def try_plan(flags: dict[str, Any]) -> Plan | None:
    resolved = resolve(flags, [], None)
    try:
        return make_plan(resolved.config, load_model(flags["model"]), resolved.cluster, Data(rows=100))
    except (UsageError, DoesNotFitError) as error:
        assert str(error)
        return None


@settings(max_examples=150, deadline=None)
@given(combinations)
def test_every_plan_multiplies_exactly_adds_up_and_fits(flags: dict[str, Any]) -> None:
    found = try_plan(flags)
    assume(found is not None)
    assert found is not None
    assert found.micro_batch_size * found.gradient_accumulation_steps * found.gpus == found.global_batch_size
    assert found.nodes * found.gpus_per_node == found.gpus
    memory = found.memory
    assert sum(memory.gpu.parts.values()) == pytest.approx(memory.gpu.expected_gib)
    for peaks in (memory.gpu, memory.host):
        assert [one.name for one in peaks.phases] == ["load", "forward", "backward", "optimizer_step", "save", "resume"]
        for one in peaks.phases:
            assert sum(one.parts.values()) == pytest.approx(one.gib.expected)
            assert one.gib.low <= one.gib.expected <= one.gib.high
            assert one.gib.expected <= peaks.capacity_gib, "a plan fits only if every phase does"
    assert memory.host_gib_per_node <= memory.host_capacity_gib_per_node
    for key, value in flags.items():
        name = key.rpartition(".")[2]
        if value is not None and hasattr(found, name) and name not in ("model", "cluster"):
            assert getattr(found, name) == value, f"{key} was given"
    assert Plan.from_json(found.to_json()) == found
    json.loads(found.to_json())


@pytest.mark.parametrize(
    "flags",
    [
        {"train__global_batch_size": 3},
        {"resources__gpus": 3},
        {"resources__nodes": 1, "resources__max_gpus": 1},
        {"resources__gpus": 2, "resources__nodes": 1, "resources__gpus_per_node": 1},
    ],
)
def test_where_there_is_no_gpu_a_refusal_speaks_of_processes(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        plan("tiny", cluster="local", **flags)
    assert "GPU" not in str(refused.value)


def test_a_shortfall_is_not_shown_as_nothing() -> None:
    model = load_model("7b")
    resolved = resolve({"model": "7b", "resources.gpus": 1, "cluster": "local"}, [], None)
    with pytest.raises(DoesNotFitError) as refused:
        make_plan(resolved.config, model, resolved.cluster, Data())
    assert "GPU" not in str(refused.value)
    need = max(float(x) for x in re.findall(r"needs ([0-9.]+) GiB a process", str(refused.value)))
    close = replace(resolved.cluster, host_memory_gib=need - 0.06)
    with pytest.raises(DoesNotFitError, match=r"MiB short") as refused:
        make_plan(resolved.config, model, close, Data())
    assert " 0.0 GiB" not in str(refused.value)
