"""One precision, and kernels that can run: what is refused says why, and what is planned is counted."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fullft_cluster
from fullft_cluster.cli.options import FLAGS
from fullft_cluster.config_load import resolve
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.plan_report import plain_lines
from fullft_cluster.planner import Data, make_plan


def plan(**flags: Any) -> Plan:
    resolved = resolve({key.replace("__", "."): value for key, value in flags.items()}, (), None)
    return make_plan(resolved.config, load_model(resolved.config.model or "7b"), resolved.cluster, Data(rows=100))


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        resolve({}, (), path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "train:\n  precision: fp16\n",
            ("job.yaml:2: train.precision: 'fp16'", "overflow fp16", "loss scaling"),
        ),
        ("train:\n  precision: fp8\n", ("job.yaml:2: train.precision: 'fp8'", "A100 has no fp8 units", "8.9", "H100s")),
        ("bf16: true\nfp16: true\n", ("job.yaml:1: bf16", "job.yaml:2: fp16", "Write train.precision: bf16 or fp32.")),
        ("train:\n  fp8: true\n", ("job.yaml:2: train.fp8", "8.9")),
        ("device_map: auto\n", ("job.yaml:1: device_map", "ZeRO-3 places the shards itself")),
        ("train:\n  attn_implementation: sdpa\n", ("Write it as resources.attn_implementation.",)),
        ("use_liger_kernel: true\n", ("Write resources.liger_kernel: true",)),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
    told = refusal(tmp_path, text)
    assert all(words in told for words in said), told


@pytest.mark.parametrize("cluster", ["a100-80gb", "a100-40gb"])
def test_a100_means_bf16_and_nothing_beside_it(cluster: str) -> None:
    made = plan(model="7b", cluster=cluster)
    config = deepspeed_json(made)
    assert made.precision == "bf16" and config["bf16"] == {"enabled": True}
    assert "precision  " in "\n".join(plain_lines(made, explain=False))
    for precision, enabled in (("bf16", 1), ("fp32", 0)):
        config = deepspeed_json(msgspec.structs.replace(made, precision=precision))
        assert [config.get(name, {}).get("enabled", False) for name in ("bf16", "fp16", "amp")].count(True) == enabled


def test_no_code_passes_a_device_map() -> None:
    for path in Path(fullft_cluster.__file__).parent.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if any(keyword.arg == "device_map" for keyword in call.keywords)], path


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({}, ("chunked", "flash_attention_2")),
        ({"train__precision": "fp32"}, ("chunked", "sdpa")),
        ({"model": "tiny", "backend": "local"}, ("chunked", "sdpa")),
        ({"resources__loss": "liger", "resources__attn_implementation": "eager"}, ("liger", "eager")),
        ({"resources__loss": "naive", "resources__attn_implementation": "sdpa"}, ("naive", "sdpa")),
    ],
)
def test_what_is_chosen_and_said(flags: dict[str, Any], chosen: tuple[str, str]) -> None:
    made = plan(**{"model": "7b", **flags})
    assert (made.loss, made.attn_implementation) == chosen
    lines = "\n".join(plain_lines(made, explain=True))
    assert f"{chosen[1]}, {chosen[0]} loss" in lines
    assert f"attn_implementation = {chosen[1]} ({'given' if 'resources__loss' in flags else 'default'})" in lines
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("flags", "key", "reason"),
    [
        ({"resources__attn_implementation": "flash_attention_2"}, "resources.attn_implementation", "CUDA GPUs alone"),
        ({"resources__loss": "liger"}, "resources.loss", "Triton kernel"),
        ({"resources__liger_kernel": True}, "resources.liger_kernel", "Triton's"),
    ],
)
def test_what_cpus_cannot_run(flags: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan(model="tiny", backend="local", **flags)
    assert key in str(refused.value) and reason in str(refused.value)


def test_flash_attention_is_for_16_bit_numbers() -> None:
    with pytest.raises(UsageError, match=r"16-bit numbers alone, and train\.precision is fp32"):
        plan(model="7b", train__precision="fp32", resources__attn_implementation="flash_attention_2")


def test_kernels_change_memory_and_time() -> None:
    """On fixed GPUs and micro-batch: by logits, masks, probabilities, and passes over memory."""
    fixed = {"model": "llama-3-8b", "resources__gpus": 8, "resources__micro_batch_size": 2}
    fixed["resources__activation_checkpointing"] = True
    base = plan(**fixed)
    naive = plan(**fixed, resources__loss="naive")
    assert naive.memory.allocated_gib - base.memory.allocated_gib > 3, "12 x 128,256 x 4,096 bytes are 5.9 GiB"
    assert naive.time.step_seconds == base.time.step_seconds
    by_attention = [
        plan(**fixed, resources__attn_implementation=kind) for kind in ("flash_attention_2", "sdpa", "eager")
    ]
    peaks = [made.memory.allocated_gib for made in by_attention]
    steps = [made.time.step_seconds.expected for made in by_attention]
    assert peaks == sorted(peaks) and peaks[2] > peaks[1] + 0.3
    assert steps[0] < steps[1] < steps[2]
    for option in ({"resources__liger_kernel": True}, {"resources__torch_compile": True}):
        fused = plan(**fixed, **option)
        assert fused.time.step_seconds.expected < base.time.step_seconds.expected
        assert fused.time.step_seconds.high / fused.time.step_seconds.expected > (
            base.time.step_seconds.high / base.time.step_seconds.expected
        )
        assert any("fewer passes over memory" in sentence for sentence in fused.why)


def test_flags_and_old_plans() -> None:
    assert FLAGS["loss"] == "resources.loss" and FLAGS["attn_implementation"] == "resources.attn_implementation"
    old = plan(model="7b").to_builtins()
    for name in ("loss", "attn_implementation", "liger_kernel", "torch_compile"):
        del old[name]
    assert Plan.from_json(msgspec.json.encode(old)).loss == "naive", "what ran before there was a choice"
