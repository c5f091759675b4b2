"""Refusals: the nearest plan that fits wherever there is one, and no longer a search on 10,000 nodes."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from fullft_cluster.config_load import resolve
from fullft_cluster.errors import DoesNotFitError
from fullft_cluster.hardware import load_gpu
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.planner.evaluate import evaluate
from fullft_cluster.planner.layout import Layout
from fullft_cluster.planner.search import layouts, least
from fullft_cluster.planner.task import Task

SOME = Data(rows=5000, text_bytes=200_000_000)


def plan(model: str, **flags: Any) -> Plan:
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    resolved = resolve({"model": model, **dotted}, [], None)
    return make_plan(resolved.config, load_model(model), resolved.cluster, SOME)


@pytest.mark.parametrize(
    ("model", "flags", "nearest"),
    [
        ("65b", {"train__global_batch_size": 12, "resources__nodes": 1}, "train.global_batch_size: 16"),
        (
            "65b",
            {"resources__max_gpus": 1, "resources__offload": "optimizer", "resources__zero_stage": 1},
            "without resources.zero_stage and resources.offload: 16 GPUs",
        ),
        (
            "30b",
            {"resources__nodes": 3, "resources__zero_stage": 2, "train__global_batch_size": 1},
            "1 GPU .* with resources.offload: optimizer",
        ),
        ("llama-3.1-405b", {"resources__hpz": True}, "without resources.hpz"),
    ],
)
def test_a_refusal_names_a_plan_that_fits_wherever_there_is_one(
    model: str, flags: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(DoesNotFitError, match=nearest):
        plan(model, **flags)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_more_nodes_never_need_more_memory(stage: int, offload: str) -> None:
    """What lets the search halve: once the least fits, it fits on all larger layouts."""
    flags = {"model": "30b", "resources.zero_stage": stage, "resources.offload": offload}
    resolved = resolve(flags, [], None)
    cluster = msgspec.structs.replace(resolved.cluster, host_memory_gib=200.0)
    task = Task(resolved.config, load_model("30b"), cluster, load_gpu(cluster.gpu))
    several = [layout for layout in layouts(task.changed(max_gpus=128)) if layout.nodes > 1]
    needs = [least(task, layout, offload) for layout in several]  # type: ignore[arg-type]
    for smaller, larger in itertools.pairwise(needs):
        assert larger.needed_gpu_bytes <= smaller.needed_gpu_bytes
        assert larger.host_bytes <= smaller.host_bytes


def test_a_refusal_on_ten_thousand_nodes_looks_at_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counted(task: Task, layout: Layout, *rest: Any) -> Any:
        looked_at.append(layout.gpus)
        return evaluate(task, layout, *rest)

    monkeypatch.setattr("fullft_cluster.planner.search.evaluate", counted)
    resolved = resolve({"model": "llama-3.1-405b", "train.seq_len": 131072}, [], None)
    cluster = msgspec.structs.replace(resolved.cluster, max_nodes=10_000)
    with pytest.raises(DoesNotFitError, match="needs up to"):
        make_plan(resolved.config, load_model("llama-3.1-405b"), cluster, SOME)
    assert len(looked_at) < 5000, "each layout, variant and offload would be 60,000"
