"""The memory model, phase by phase: what each kind of sharding leaves on a GPU and on its host."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullft_cluster.deepspeed_json import zero_optimization
from fullft_cluster.model import load_model
from fullft_cluster.planner import activations, sharding, storage
from fullft_cluster.planner.memory import allocated, interval, peak, phases
from fullft_cluster.planner.setup import Setup
from fullft_cluster.units import GIB

P7B = 6_738_415_616


def setup(stage: Any = 3, hpz: int = 1, **changes: Any) -> Setup:
    offload = changes.pop("offload", "none")
    base = Setup(
        model=load_model("7b"),
        gpu="a100-80gb",
        gpus=8,
        nodes=1,
        micro_batch_size=1,
        seq_len=2048,
        activation_checkpointing=True,
        precision="bf16",
        offload=offload,
        zero=zero_optimization(4096, "a100-80gb", offload, stage, hpz),
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # bytes a parameter that stay: whole or sharded parameters, gradients of stage 3, 12 of the optimizer
        (1, 2 + 12 / 8),
        (2, 2 + 12 / 8),
        (3, (2 + 2 + 12) / 8),
    ],
)
def test_states_by_stage(stage: int, expected: float) -> None:
    assert sum(sharding.states(setup(stage)).values()) == pytest.approx(expected * P7B, rel=1e-4)


def test_stages_1_and_2_add_gradients_in_the_backward_pass() -> None:
    one, two = (sharding.gradients_in_backward(setup(stage)) for stage in (1, 2))
    assert two == 2 * sharding.reaching(load_model("7b"), 8)
    assert 2 * P7B / 8 <= two <= 1.1 * 2 * P7B / 8, "whole tensors, where a part's border runs through them"
    assert one == 2 * P7B + two
    accumulating = sharding.gradients_in_backward(setup(2, accumulation=4))
    assert accumulating == 2 * two, "the sum so far, and those of this micro-step"


def test_hpz_keeps_a_second_copy_within_the_node() -> None:
    two_nodes = setup(3, hpz=8, gpus=16, nodes=2)
    assert sharding.states(two_nodes)["secondary_parameters"] == pytest.approx(2 * P7B / 8, rel=1e-4)


def test_offloading_parameters_leaves_no_shard_on_the_gpu() -> None:
    assert sharding.states(setup(offload="parameters")) == {}
    assert set(sharding.states(setup(offload="optimizer"))) == {"parameters"}


def test_fsdp_needs_16_bytes_and_20_in_an_unfused_step() -> None:
    for own, expected in ((True, 16), (False, 20)):
        parts = phases(setup(engine="fsdp", own_fsdp=own))["optimizer_step"]
        held = sum(size for name, size in parts.items() if name not in ("fragmentation", "framework"))
        assert held == pytest.approx(expected * P7B / 8, rel=1e-4)
    pure = phases(setup(engine="fsdp", pure_bf16=True))["optimizer_step"]
    assert pure["parameters"] + pure["gradients"] + pure["optimizer_states"] == pytest.approx(P7B, rel=1e-4)


def test_our_fsdp_sums_in_fp32_gathers_on_one_gpu_too_and_offloads_all() -> None:
    own, other = setup(engine="fsdp", own_fsdp=True), setup(engine="fsdp")
    assert sharding.reducing(own) == 3 * sharding.reducing(other) // 2
    assert sharding.gathered_elements(setup(engine="fsdp", own_fsdp=True, gpus=1), "backward") > 0
    on_host = setup(engine="fsdp", own_fsdp=True, offload="parameters")
    assert sharding.states(on_host) == {}
    offloaded = storage.host_phases(on_host)["backward"]["offloaded"]
    assert 16 * P7B <= offloaded < 20 * P7B


def test_a_gpu_alone_gathers_nothing() -> None:
    assert sharding.gathered_elements(setup(gpus=1), "backward") == 0
    assert sharding.persistent(setup(gpus=1)) == 0
    live = setup().zero["stage3_max_live_parameters"]
    assert sharding.gathered_elements(setup(), "backward") == live + load_model("7b").largest_tensor


def test_grouped_queries_keep_less_and_a_chunked_loss_too() -> None:
    llama3, mistral = load_model("llama-3-8b"), load_model("mistral-7b-v0.1")
    as_many = replace(setup(), model=mistral, gpus=8)
    assert mistral.num_key_value_heads < mistral.num_attention_heads
    h, i, q, k = mistral.hidden_size, mistral.intermediate_size, mistral.query_size, mistral.key_value_size
    exact = 16 * h + 8 + 4 * (q + k) + 4 * mistral.num_attention_heads + 8 * i
    assert activations.layer_bytes_per_token(as_many) == exact
    naive = activations.logits_and_loss(replace(setup(), model=llama3, micro_batch_size=4))
    chunked = activations.logits_and_loss(replace(setup(), model=llama3, micro_batch_size=4, loss="chunked"))
    assert naive > 4 * 2048 * 128_256 * 12
    assert chunked < naive / 5


def test_host_memory_under_offload_and_while_resuming() -> None:
    by_phase = storage.host_phases(setup(offload="optimizer"))
    training = by_phase["forward"]["offloaded"]
    assert training >= 18 * P7B, "master weight, moments, fp32 and 16-bit gradients"
    assert training <= 24 * P7B, "page-locked blocks are rounded up to powers of two"
    resuming = by_phase["resume"]
    assert resuming["checkpoint_shards"] == pytest.approx(12 * P7B, rel=1e-4)
    assert resuming["offloaded"] == pytest.approx(training - 8 * P7B, rel=1e-4), "what is loaded becomes the moments"
    assert storage.host_phases(setup(2))["load"]["weights"] == 8 * 2 * P7B, "every rank loads the whole model"
    assert storage.host_phases(setup(3))["load"]["weights"] == 2 * P7B
    saving = storage.host_phases(setup(3))["save"]["export"]
    assert saving == 5e9 + 4 * 32000 * 4096 + 2**30, "a file, the embeddings in fp32, what is mapped: not the model"


@pytest.mark.parametrize(("size", "block"), [(0, 0), (1, 1), (3, 4), (4, 4), (2**30 + 1, 2**31)])
def test_page_locked_blocks_are_powers_of_two(size: int, block: int) -> None:
    assert storage.locked(size) == block


def test_the_allocator_does_not_see_what_lies_outside() -> None:
    _, parts = peak(setup())
    assert allocated(parts) == sum(parts.values()) - parts["framework"] - parts["fragmentation"]


def test_deviations_add_up_as_squares() -> None:
    low, expected, high = interval({"a": 10.0, "b": 10.0}, {"a": (0.7, 1.3), "b": (0.6, 1.4)})
    assert (low, expected, high) == pytest.approx((15.0, 20.0, 25.0))


setups = st.builds(
    setup,
    st.sampled_from([1, 2, 3]),
    model=st.sampled_from([load_model(name) for name in ("7b", "65b", "llama-3-8b", "qwen2.5-0.5b", "tiny")]),
    gpus=st.sampled_from([2, 4, 8]),
    micro_batch_size=st.integers(1, 16),
    seq_len=st.sampled_from([1, 128, 2048, 8192]),
    activation_checkpointing=st.booleans(),
    precision=st.sampled_from(["bf16", "fp32"]),
    accumulation=st.sampled_from([1, 4]),
    loss=st.sampled_from(["naive", "chunked", "in_output", "shifted"]),
)


def needed(one: Setup) -> int:
    return sum(peak(one)[1].values())


@settings(max_examples=200, deadline=None)
@given(setups)
def test_no_part_is_negative_and_more_never_needs_less(one: Setup) -> None:
    for parts in phases(one).values():
        assert all(size >= 0 for size in parts.values())
    assert needed(replace(one, micro_batch_size=2 * one.micro_batch_size)) >= needed(one)
    assert needed(replace(one, seq_len=2 * one.seq_len)) >= needed(one)
    if one.loss != "chunked":
        # At worst the softmax of a chunk comes beside the weight's gradient, which comes later otherwise.
        chunk = activations.LOSS_BYTES["chunked"] * one.model.vocab_size * activations.LOSS_CHUNK_TOKENS
        assert needed(replace(one, loss="chunked")) <= needed(one) + 1.06 * chunk
    assert needed(replace(one, attention="eager")) >= needed(replace(one, attention="sdpa")) >= needed(one)
    assert needed(replace(one, liger_kernel=True)) <= needed(one)


@settings(max_examples=60, deadline=None)
@given(setups)
def test_more_gpus_never_need_more_memory_each(one: Setup) -> None:
    amounts = [needed(replace(one, gpus=gpus, nodes=-(-gpus // 8))) for gpus in (2, 4, 8, 16, 64)]
    # A shard is rounded up per tensor or group, so equality may be missed by the padding of each tensor.
    padding = 64 * 16 * (one.model.num_hidden_layers * 12 + 3)
    assert all(more >= less - padding for more, less in pairwise(amounts))


@settings(max_examples=60, deadline=None)
@given(setups, st.sampled_from(["optimizer", "parameters"]))
def test_offload_moves_memory_from_the_gpu_to_the_host(one: Setup, offload: Any) -> None:
    if one.zero_stage < 3:
        return
    there = replace(one, offload=offload, zero=zero_optimization(one.model.hidden_size, one.gpu, offload))
    assert needed(there) < needed(one) + GIB // 1024
    assert sum(storage.host_phases(there)["forward"].values()) > sum(storage.host_phases(one)["forward"].values())
