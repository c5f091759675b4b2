"""Choosing: objectives, deadlines, offload as the last resort, the Pareto front, and nodes that exist."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullft_cluster.config_load import resolve
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.errors import DoesNotFitError, UsageError
from fullft_cluster.inventory import Inventory, Pool
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.planner.options import pareto
from fullft_cluster.road import to_plan

SOME = Data(rows=5000, text_bytes=200_000_000)


def plan(model: str = "7b", data: Data = SOME, **flags: Any) -> Plan:
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    resolved = resolve({"model": model, **dotted}, [], None)
    return make_plan(resolved.config, load_model(model), resolved.cluster, data)


def test_objectives_pull_in_their_directions() -> None:
    fewest, cheapest, fastest = (plan("13b", resources__objective=x) for x in ("fewest-gpus", "least-cost", "fastest"))
    assert fewest.gpus <= cheapest.gpus <= fastest.gpus
    assert fewest.time.hours and cheapest.time.hours and fastest.time.hours
    assert fewest.time.gpu_hours and cheapest.time.gpu_hours and fastest.time.gpu_hours
    assert cheapest.time.gpu_hours.expected <= min(fewest.time.gpu_hours.expected, fastest.time.gpu_hours.expected)
    assert fastest.time.hours.expected <= min(fewest.time.hours.expected, cheapest.time.hours.expected)
    assert fastest.gpus <= 32, "more than 32 GPUs are looked at only when asked"
    assert plan("13b", resources__objective="fastest", resources__max_gpus=64).gpus == 64


def test_a_deadline_takes_as_many_gpus_as_it_needs_and_no_more() -> None:
    slow = plan("13b")
    assert slow.time.hours
    found = plan("13b", resources__deadline=f"{slow.time.hours.high / 2:.2f}h")
    assert found.time.hours and found.time.hours.high <= slow.time.hours.high / 2
    assert found.gpus > slow.gpus
    smaller = [option for option in found.options if option.gpus < found.gpus and option.fits]
    assert all(option.hours > found.time.hours.expected for option in smaller)
    assert any("deadline" in sentence for sentence in found.why)


@pytest.mark.parametrize("batch", [480, 960])
def test_no_smaller_layout_keeps_the_deadline(batch: int) -> None:
    flags = {"train__global_batch_size": batch, "train__max_steps": 1280_000 // batch}
    found = plan("13b", Data(), resources__deadline="100h", **flags)
    for gpus in range(1, min(found.gpus, 9)):
        if batch % gpus == 0:
            smaller = plan("13b", Data(), resources__gpus=gpus, **flags)
            assert smaller.offload != "none" or (smaller.time.hours and smaller.time.hours.high > 100)


def test_a_deadline_that_cannot_be_kept_names_the_nearest() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        plan("65b", resources__deadline="2h", resources__max_gpus=16)
    text = str(refused.value)
    assert "deadline" in text and "Write --deadline" in text
    hours = text.split("Write --deadline ")[1].split("h", maxsplit=1)[0]
    assert plan("65b", resources__deadline=f"{hours}h", resources__max_gpus=16).gpus == 16


@pytest.mark.parametrize("deadline", ["24", "soon", "-3h", "0h", "", "9999999d"])
def test_what_is_no_deadline(deadline: str) -> None:
    with pytest.raises(UsageError, match=r"resources\.deadline"):
        plan("7b", resources__deadline=deadline)


def test_a_deadline_needs_a_length() -> None:
    with pytest.raises(UsageError, match="--max-steps"):
        plan("7b", data=Data(), resources__deadline="24h")
    assert plan("7b", data=Data(), train__max_steps=100, resources__deadline="24h").time.total_steps == 100


def test_offload_is_the_last_resort() -> None:
    assert plan("30b").offload == "none"
    squeezed = plan("30b", resources__max_gpus=4)
    assert squeezed.offload == "optimizer"
    assert any("Nothing fits" in sentence for sentence in squeezed.why)
    with pytest.raises(DoesNotFitError):
        plan("30b", resources__max_gpus=4, resources__offload="none")


def test_recomputation_follows_from_what_fits() -> None:
    assert not plan("7b", resources__gpus=8).activation_checkpointing, "it fits without, and is faster"
    assert plan("65b").activation_checkpointing


def test_zero_2_is_taken_for_speed_only() -> None:
    assert plan("7b", resources__gpus=8).zero_stage == 3
    assert plan("7b", resources__gpus=8, resources__objective="fastest").zero_stage == 2
    assert plan("7b", resources__gpus=8, resources__zero_stage=1).zero_stage == 1
    with pytest.raises(DoesNotFitError, match="With ZeRO-3"):
        plan("65b", resources__gpus=16, resources__zero_stage=2)


def test_hpz_is_taken_where_the_network_between_nodes_is_slow(tmp_path: Path) -> None:
    profile = tmp_path / "slow.yaml"
    text = Path("configs/clusters/a100-80gb.yaml").read_text()
    profile.write_text(text.replace("inter_node_gb_per_second: 50", "inter_node_gb_per_second: 5"))
    slow = {"cluster": str(profile), "resources.gpus": 32, "resources.zero_stage": 3}
    assert not plan("30b", **slow).hpz, "unless speed is the aim"
    assert plan("30b", **slow, resources__objective="fastest").hpz
    assert not plan("30b", **slow, resources__objective="fastest", resources__hpz=False).hpz
    one = {"resources.gpus": 8, "resources.objective": "fastest", "resources.zero_stage": 3}
    assert not plan("7b", **one).hpz, "within one node it is what ZeRO-3 is"


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({"resources__hpz": True, "resources__zero_stage": 2}, "resources.hpz"),
        ({"resources__offload": "parameters", "resources__zero_stage": 1}, "resources.offload"),
        ({"resources__gpus": 8, "resources__max_gpus": 4}, "resources.gpus"),
        ({"resources__engine": "fsdp", "resources__zero_stage": 2}, "resources.zero_stage"),
        ({"resources__engine": "fsdp", "resources__offload": "optimizer"}, "resources.offload"),
        ({"resources__engine": "fsdp", "resources__hpz": True, "resources__nodes": 2}, "resources.hpz"),
    ],
)
def test_contradictions_name_the_key(flags: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan("7b", **flags)
    assert key in str(refused.value)


def test_what_fits_odd_gpus_alone_can_have_a_deadline_too() -> None:
    found = plan("llama-3.1-405b", Data(), resources__deadline="24h", train__max_steps=100)
    assert found.gpus == 120 and sum(option.chosen for option in found.options) == 1
    with pytest.raises(DoesNotFitError, match="Write --deadline"):
        plan("llama-3.1-405b", Data(), resources__deadline="1m", train__max_steps=100)


@pytest.mark.parametrize("nodes", [1, 2])
def test_hpz_is_planned_as_it_is_written_for_deepspeed(nodes: int) -> None:
    found = plan("7b", resources__hpz=True, resources__nodes=nodes)
    written = deepspeed_json(found)["zero_optimization"]
    assert found.hpz == ("zero_hpz_partition_size" in written) == ("secondary_parameters" in found.memory.gpu.parts)
    assert [option.hpz for option in found.options if option.chosen] == [found.hpz] == [nodes > 1]


def test_offloaded_plans_are_held_against_those_that_are_not() -> None:
    found = plan("7b", resources__gpus=1)
    assert found.offload == "optimizer"
    assert any(option.offload == "none" and option.fits and option.pareto for option in found.options)
    points = [(o.gpus, o.hours, o.gpu_hours) for o in found.options if o.fits]
    assert [o.pareto for o in found.options if o.fits] == pareto(points)


def test_all_options_learn_the_same() -> None:
    found = plan("7b", Data(), resources__micro_batch_size=8, resources__gpus=4, train__max_steps=10)
    batches = {o.micro_batch_size * o.gradient_accumulation_steps * o.gpus for o in found.options if o.fits}
    assert batches == {found.global_batch_size} == {64}


def test_a_short_run_still_saves_and_exports() -> None:
    found = plan("65b", Data(), train__max_steps=2)
    assert found.time.hours
    written = found.time.checkpoint_seconds * (1 + found.export_gb / found.checkpoint_gb)
    assert found.time.hours.expected * 3600 == pytest.approx(2 * found.time.step_seconds.expected + written)


def test_the_disk_has_to_hold_the_run() -> None:
    resolved = resolve({"model": "7b"}, [], None)
    small = msgspec.structs.replace(resolved.cluster, filesystem_free_gb=100.0)
    with pytest.raises(DoesNotFitError, match=r"of disk where 100\.0 GB are free"):
        make_plan(resolved.config, load_model("7b"), small, SOME)


def test_a_refusal_says_what_beyond_the_resources_would_have_to_change() -> None:
    resolved = resolve({"model": "7b", "output.save_total_limit": 3}, [], None)
    one = msgspec.structs.replace(resolved.cluster, filesystem_free_gb=200.0)
    with pytest.raises(DoesNotFitError, match=r"With output\.save_total_limit: 1 it fits on 2 GPUs"):
        make_plan(resolved.config, load_model("7b"), one, SOME)
    none = msgspec.structs.replace(resolved.cluster, filesystem_free_gb=50.0)
    with pytest.raises(DoesNotFitError, match=r"Free .* GB more"):
        make_plan(resolved.config, load_model("7b"), none, SOME)
    with pytest.raises(DoesNotFitError, match=r"With train\.seq_len: (\d+) it fits") as refused:
        plan("llama-3.1-8b", train__seq_len=131072)
    seq_len = int(str(refused.value).split("train.seq_len: ")[1].split()[0])
    assert plan("llama-3.1-8b", train__seq_len=seq_len)
    few = msgspec.structs.replace(resolved.cluster, max_nodes=2)
    with pytest.raises(DoesNotFitError, match=r"It would fit on .* but a100-80gb has 2 nodes"):
        make_plan(resolved.config, load_model("llama-3.1-405b"), few, SOME)


def test_least_cost_is_what_its_own_table_says() -> None:
    for model in ("7b", "13b", "llama-3-8b", "qwen2.5-7b", "30b"):
        found = plan(model, resources__objective="least-cost")
        assert min(option.gpu_hours for option in found.options if option.fits and option.offload == "none") == (
            pytest.approx(next(option.gpu_hours for option in found.options if option.chosen))
        )


def test_what_a_plan_warns_of() -> None:
    assert any("less than one global batch" in why for why in plan("7b", data=Data(rows=5, text_bytes=900)).why)


def test_resuming_has_to_fit_the_host() -> None:
    resolved = resolve({"model": "65b", "resources.gpus": 16}, [], None)
    # Enough to train, not enough to hold a node's shards of the checkpoint while it resumes: 12 bytes a parameter.
    small = msgspec.structs.replace(resolved.cluster, host_memory_gib=300.0)
    with pytest.raises(DoesNotFitError, match="host memory a node"):
        make_plan(resolved.config, load_model("65b"), small, SOME)


def test_the_options_show_the_choice_the_front_and_what_is_lacking() -> None:
    found = plan("65b")
    assert [option.gpus for option in found.options if option.chosen] == [found.gpus]
    lacking = [option for option in found.options if not option.fits]
    assert lacking and all(option.note and option.gpus < found.gpus for option in lacking)
    assert not any(option.pareto for option in lacking)
    hours = {option.gpus: option.hours for option in found.options if option.pareto}
    assert all(hours[a] > hours[b] for a, b in itertools.pairwise(sorted(hours)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    best = pareto(points)
    assert any(best), "something is always best"
    for point, on_front in zip(points, best, strict=True):
        beaten = any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        assert on_front != beaten


def test_tokens_come_from_the_data_and_say_so() -> None:
    found = plan("7b", data=Data(rows=5000, text_bytes=80_000_000))
    assert found.time.tokens and found.time.total_steps
    assert found.time.tokens == pytest.approx(20_000_000 * 3, rel=0.01), "3 passes by default for 5,000 rows"
    assert "estimated" in found.time.tokens_source
    assert plan("7b", data=Data()).time.hours is None
    assert found.time.hours and found.time.hours.low < found.time.hours.expected < found.time.hours.high


def test_a_price_makes_a_cost() -> None:
    found = plan("7b", resources__price_per_gpu_hour=2.0)
    assert found.time.cost and found.time.gpu_hours
    assert found.time.cost.expected == pytest.approx(2 * found.time.gpu_hours.expected)
    assert plan("7b").time.cost is None


def test_no_bf16_where_the_gpu_has_none(tmp_path: Path) -> None:
    profile = tmp_path / "old.yaml"
    text = Path("configs/clusters/a100-80gb.yaml").read_text()
    profile.write_text(text.replace("gpu: a100-80gb", "gpu: v100-32gb"))
    resolved = resolve({"model": "7b", "cluster": str(profile)}, [], None)
    with pytest.raises(UsageError, match="does not compute in bf16"):
        make_plan(resolved.config, load_model("7b"), resolved.cluster, SOME)


def pool(gpu: str, nodes: int, **changes: Any) -> Pool:
    values: dict[str, Any] = {
        "gpu_type": gpu,
        "gpu": gpu,
        "candidates": (gpu,),
        "gpus_per_node": 8,
        "nodes": nodes,
        "nodes_up": nodes,
        "nodes_idle": nodes,
        "cpus_per_node": 128,
        "host_memory_gib": 1900.0,
        "names": f"{gpu}-[1-{nodes}]",
    }
    return Pool(**{**values, **changes})


def test_the_plan_is_laid_on_nodes_that_exist() -> None:
    resolved = resolve({"model": "65b"}, [], None)
    one = Inventory(source="slurm", pools=(pool("a100-80gb", 1), pool("h100-80gb", 4)))
    planned = to_plan(resolved, one)
    assert (planned.plan.gpu, planned.plan.nodes) == ("h100-80gb", 2), "two nodes are needed, and only H100s are two"
    assert planned.site is not None
    both = Inventory(source="slurm", pools=(pool("a100-80gb", 4), pool("h100-80gb", 4)))
    assert to_plan(resolved, both).plan.gpu == "a100-80gb", "the profile's GPU comes first among equals"
    faster = resolve({"model": "65b", "resources.objective": "fastest"}, [], None)
    assert to_plan(faster, both).plan.gpu == "h100-80gb"
    down = Inventory(source="slurm", pools=(pool("a100-80gb", 4, nodes_up=1),))
    assert to_plan(resolved, down).plan.offload == "optimizer", "one node is up, and nothing fits on it without"
    strict = resolve({"model": "65b", "resources.offload": "none"}, [], None)
    with pytest.raises(DoesNotFitError):
        to_plan(strict, down)
