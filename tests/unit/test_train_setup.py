"""What a worker sets up before its first step: config, attention, warm-up, and weights that fit the plan."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("deepspeed")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.model import differences, load_model  # noqa: E402
from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.train import exits  # noqa: E402
from fullft_cluster.train.attention import attention_implementation  # noqa: E402
from fullft_cluster.train.optimizer import warmup_steps  # noqa: E402
from fullft_cluster.train.setup import Identity, read_job, set_environment  # noqa: E402
from fullft_cluster.train.weights import make_model  # noqa: E402


@pytest.mark.parametrize(
    ("device", "precision", "installed", "chosen"),
    [
        ("cuda", "bf16", True, "flash_attention_2"),
        ("cuda", "fp32", True, "sdpa"),  # its kernels take 16-bit numbers only
        ("cuda", "bf16", False, "sdpa"),
        ("cpu", "bf16", True, "sdpa"),
    ],
)
def test_attention(monkeypatch: pytest.MonkeyPatch, device: str, precision: str, installed: bool, chosen: str) -> None:
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    assert attention_implementation(torch.device(device), precision) == chosen


@pytest.mark.parametrize(
    ("total", "ratio", "warmup"),
    [(1, 0.03, 0), (1, 1.0, 0), (2, 0.03, 1), (3, 1.0, 2), (100, 0.03, 3), (101, 0.03, 4), (100, 0.0, 0)],
)
def test_warm_up_leaves_a_step_that_learns(total: int, ratio: float, warmup: int) -> None:
    assert warmup_steps(total, ratio) == warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == 1.0
    assert (rates[0] == 0) == (warmup > 0), "transformers' schedule begins at 0"


def other_shape(tmp_path: Path, **changes: Any) -> str:
    """Return a directory with the config.json of the 7b preset, changed; it holds no weights."""
    config = {**load_model("7b").hf_config, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def job(weights: str) -> Any:
    config = SimpleNamespace(model="7b", weights=weights)
    return SimpleNamespace(config=config, plan=SimpleNamespace(precision="bf16", seed=1))


def test_weights_of_another_architecture_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    thirteen = load_model("13b")
    assert thirteen.vocab_size == load_model("7b").vocab_size
    (tmp_path / "config.json").write_text(json.dumps(thirteen.hf_config))
    with pytest.raises(UsageError) as caught:
        make_model(job(str(tmp_path)), "sdpa")
    said = [str(problem) for problem in caught.value.problems]
    assert [words for words in said if "hidden_size is 5120, but 7b has 4096" in words]
    assert [words for words in said if "num_hidden_layers is 40, but 7b has 32" in words]
    assert [words for words in said if "num_attention_heads is 40, but 7b has 32" in words]
    assert not [words for words in said if "vocab_size" in words]
    assert exits.classify(caught.value) == (93, "config")


def test_weights_of_the_planned_architecture_are_loaded(tmp_path: Path) -> None:
    """Their context length may be another: no weight's shape depends on it."""
    with pytest.raises(UsageError, match="cannot be loaded"):  # the directory has no weights
        make_model(job(other_shape(tmp_path, max_position_embeddings=2**14)), "sdpa")


@pytest.mark.parametrize("name", ["7b", "13b", "tiny"])
def test_a_preset_equals_itself_as_transformers_reads_it(name: str) -> None:
    spec = load_model(name)
    assert differences(spec, spec.hf_config) == []
    assert differences(spec, transformers.AutoConfig.for_model(**spec.hf_config).to_dict()) == []


def test_differences_name_each_key() -> None:
    spec = load_model("7b")
    config = {**spec.hf_config, "model_type": "gpt2", "vocab_size": 32001, "num_key_value_heads": 8}
    assert differences(spec, config) == [
        "model_type is gpt2, but 7b has llama",
        "num_key_value_heads is 8, but 7b has 32",
        "vocab_size is 32001, but 7b has 32000",
    ]


def test_a_damaged_config_is_told_with_its_line_beside_what_else_is_missing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    run.config.write_text("model: 7b\ntrain:\n  seqlen: 3\n")
    with pytest.raises(UsageError) as caught:
        read_job(run, 1, Identity(rank=0, local_rank=0, world_size=1, local_world_size=1))
    said = [str(problem) for problem in caught.value.problems]
    assert said[0].startswith(f"{run.config}:3: ")
    assert "seqlen" in said[0]
    assert [Path(words.split(":")[0]).name for words in said[1:]] == ["plan.json", "deepspeed.json", "data.json"]


def test_deepspeed_does_not_ask_for_numa_nodes_at_each_gradient() -> None:
    found: dict[str, str] = {"LOCAL_WORLD_SIZE": "2"}
    set_environment(found, "cpu")
    assert (found["DS_ACCELERATOR"], found["LOCAL_SIZE"]) == ("cpu", "2")
    given = {"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "4"}
    set_environment(given, "cpu")
    assert given["LOCAL_SIZE"] == "4"
    on_gpu: dict[str, str] = {}
    set_environment(on_gpu, "a100-80gb")
    assert "LOCAL_SIZE" not in on_gpu
