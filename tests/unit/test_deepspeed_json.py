"""deepspeed.json: made from the plan alone, exact, and accepted by DeepSpeed's own parser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fullft_cluster.config_load import resolve
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan


def plan(**flags: Any) -> Plan:
    dotted = {key.replace("__", "."): value for key, value in {"model": "7b", **flags}.items()}
    resolved = resolve(dotted, [], None)
    return make_plan(resolved.config, load_model(dotted["model"]), resolved.cluster, Data(rows=100))


PLANS: list[dict[str, Any]] = [
    {},
    {"model": "65b", "resources__gpus": 32},
    {"resources__offload": "optimizer", "resources__gpus": 4},
    {"model": "tiny", "backend": "local"},
    {"model": "tiny", "backend": "local", "train__precision": "fp32", "resources__offload": "optimizer"},
]


@pytest.mark.parametrize("flags", PLANS)
def test_the_batch_multiplies_exactly(flags: dict[str, Any]) -> None:
    made = plan(**flags)
    config = deepspeed_json(made)
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * made.gpus
    assert product == config["train_batch_size"] == made.global_batch_size


@pytest.mark.parametrize("flags", PLANS)
def test_one_precision_and_never_a_device_map(flags: dict[str, Any]) -> None:
    made = plan(**flags)
    config = deepspeed_json(made)
    assert config["bf16"]["enabled"] == (made.precision == "bf16")
    assert "fp16" not in config
    assert "device_map" not in json.dumps(config)
    assert "auto" not in json.dumps(config), "every value is known, so none is left to be guessed"


@pytest.mark.parametrize("flags", PLANS)
def test_deepspeed_takes_it(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed refuses unknown keys in zero_optimization, and a batch that does not multiply."""
    pytest.importorskip("deepspeed", reason="the extra `train` is not installed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime import config as deepspeed_config

    made = plan(**flags)
    # What an initialised process group would answer; without one it takes a single process for granted.
    monkeypatch.setattr(deepspeed_config.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(deepspeed_config.dist, "get_world_size", lambda *_: made.gpus)
    parsed = deepspeed_config.DeepSpeedConfig(deepspeed_json(made))
    assert parsed.zero_optimization_stage == 3
    assert parsed.train_batch_size == made.global_batch_size
    assert parsed.train_micro_batch_size_per_gpu == made.micro_batch_size


def test_a_small_model_on_cpus_takes_the_road_of_a_large_one() -> None:
    zero = deepspeed_json(plan(model="tiny", backend="local"))["zero_optimization"]
    assert zero["stage3_param_persistence_threshold"] == 0, "every parameter is sharded and gathered"
    assert zero["reduce_bucket_size"] < 10**6


def test_the_optimizer_resumes_bit_for_bit_where_it_is_not_offloaded() -> None:
    assert deepspeed_json(plan())["optimizer"]["params"]["torch_adam"] is True
    offloaded = deepspeed_json(plan(resources__offload="optimizer", resources__gpus=4))
    assert offloaded["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}


def test_the_recipe_is_what_is_written_for_deepspeed() -> None:
    """AdamW, decay 0.01 (norms and biases are a group of their own), clip 1.0; torch's fused kernel on GPUs."""
    found = plan()
    assert (found.warmup_ratio, found.weight_decay, found.max_grad_norm) == (0.03, 0.01, 1.0)
    config = deepspeed_json(found)
    assert config["gradient_clipping"] == 1.0
    assert config["optimizer"]["type"] == "AdamW"
    assert config["optimizer"]["params"] | {"fused": True, "weight_decay": 0.01} == config["optimizer"]["params"]
    assert "fused" not in deepspeed_json(plan(model="tiny", backend="local"))["optimizer"]["params"]
    offloaded = deepspeed_json(plan(resources__offload="optimizer", resources__gpus=4))["optimizer"]["params"]
    assert not {"fused", "torch_adam"} & offloaded.keys(), "DeepSpeedCPUAdam"
