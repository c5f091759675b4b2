"""Shapes of models: exact parameter counts, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.model import differences, load_model, presets, spec_from_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("7b", 6738415616), ("13b", 13015864320), ("30b", 32528943616), ("65b", 65285660672)],
)
def test_llama_1_has_the_published_parameters(name: str, parameters: int):
    model = load_model(name)
    assert model.parameters == parameters
    assert model.max_position_embeddings == 2048
    assert model.weights == f"huggyllama/llama-{name}"


def test_small_presets_bring_random_weights_and_a_tokenizer():
    tiny, small = load_model("tiny"), load_model("small")
    assert 0.8e6 < tiny.parameters < 1.3e6
    assert 20e6 < small.parameters < 30e6
    for model in (tiny, small):
        assert model.weights == "random"
        assert model.num_key_value_heads < model.num_attention_heads
        assert Path(model.tokenizer or "").is_absolute()


def test_no_preset_holds_a_parameter_count():
    assert {"7b", "13b", "30b", "65b", "tiny", "small"} <= set(presets())
    for name in presets():
        assert "parameters" not in load_model(name).hf_config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 32},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "qwen2", "num_key_value_heads": 4, "tie_word_embeddings": False},
        {"model_type": "qwen3", "num_key_value_heads": 2},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32, "attention_bias": True, "mlp_bias": True},
        {"model_type": "phi3", "num_key_value_heads": 2, "pad_token_id": 0},
        {"model_type": "phi3", "attention_bias": True, "pad_token_id": 0, "tie_word_embeddings": True},
        {"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
        "7b",
        "65b",
        "tiny",
    ],
    ids=str,
)
def test_the_closed_form_is_what_transformers_builds(changes: dict[str, Any] | str):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = load_model(changes).hf_config if isinstance(changes, str) else {**LLAMA, **changes}
    spec = spec_from_config(config, "x", "x")
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    tensors = {name: tensor.numel() for name, tensor in built.named_parameters()}
    assert spec.parameters == sum(tensors.values())
    ours = {tensor.name: tensor.elements for tensor in spec.outer_tensors()}
    ours |= {
        f"model.layers.{layer}.{tensor.name}": tensor.elements
        for layer in range(spec.num_hidden_layers)
        for tensor in spec.layer_tensors()
    }
    assert ours == tensors


def test_a_config_json_and_its_directory(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for ref in (tmp_path, tmp_path / "config.json"):
        spec = load_model(str(ref))
        assert spec.name == tmp_path.name
        assert spec.hf_config == LLAMA
        assert (spec.weights, spec.tokenizer) == (None, None)
    (tmp_path / "model.safetensors").touch()
    assert load_model(str(tmp_path)).weights == str(tmp_path)


def test_a_hub_id_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "hub" / "models--meta-llama--Llama-9B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    spec = load_model("meta-llama/Llama-9B")
    assert (spec.name, spec.weights) == ("Llama-9B", "meta-llama/Llama-9B")
    with pytest.raises(UsageError, match="hf download meta-llama/other"):
        load_model("meta-llama/other")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("7bb", "model: unknown model '7bb'. Did you mean '7b'?"),
        ("70b", "Did you mean 'llama-2-70b' or 'llama-3-70b' or 'llama-3.1-70b'?"),
        ("qwen2.5-33b", "'qwen2.5-32b'"),
        ("mixtral-8x7b", "The mixtral architecture is not planned for"),
        ("", "unknown model ''. Known: 13b"),
        ("./nowhere", "no file or directory"),
        ("../models/7b", "no file or directory"),
        ("a/../b", "unknown model"),
        ("\0", "unknown model"),
        ("x" * 5000, "unknown model"),
    ],
)
def test_unknown_models(ref: str, message: str):
    with pytest.raises(UsageError) as error:
        load_model(ref)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model_type": "bert"}, ["c: is of an encoder (bert), which generates no text. Give a dense decoder-only"]),
        ({"model_type": None}, ["has no model_type"]),
        (
            {"model_type": ["llama"]},
            ["model_type ['llama'] is not supported. Give a dense decoder-only model of one of"],
        ),
        ({"hidden_size": None, "vocab_size": None}, ["c: hidden_size: is missing", "c: vocab_size: is missing"]),
        ({"hidden_size": -1, "num_hidden_layers": "2"}, ["c: hidden_size: -1 is not", "c: num_hidden_layers: '2' is"]),
        ({"hidden_size": 10**9}, ["c: hidden_size: 1000000000 is not a whole number, 1 to 10000000"]),
        ({"num_attention_heads": 0}, ["num_attention_heads: 0 is not"]),
        ({"num_attention_heads": 3}, ["3 does not divide hidden_size 64"]),
        ({"num_key_value_heads": 3}, ["3 does not divide the 4 attention heads"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings: 'yes' is not true or false"]),
        ({"quantization_config": {"bits": 4}}, ["quantised"]),
        ({"hidden_size": 10**12}, ["hidden_size: 1000000000000 is not a whole number, 1 to 10000000"]),
        ({"hidden_size": 1e400}, ["hidden_size: inf is not a number to compute with"]),
        ({"hidden_size": 64.0}, ["hidden_size: 64.0 is not a whole number"]),
        ({"vocab_size": "300"}, ["vocab_size: '300' is not a whole number"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers: true is not a whole number"]),
        ({"num_hidden_layers": [2]}, ["num_hidden_layers: [2] is not a whole number"]),
        (
            {"hidden_size": 10**6, "num_attention_heads": 10, "num_hidden_layers": 10**6},
            ["c: these sizes make", "parameters, more than any model has. Check hidden_size"],
        ),
        ({"model_type": "gemma2"}, ["c: model_type 'gemma2' is not supported. Give a dense decoder-only model of one"]),
        ({"model_type": "t5", "is_encoder_decoder": True}, ["c: is of an encoder-decoder (t5)"]),
        ({"model_type": "mixtral", "num_local_experts": 8}, ["c: is of a mixture of experts (num_local_experts 8)"]),
        ({"model_type": "qwen3_moe"}, ["c: is of a mixture of experts (qwen3_moe)"]),
        ({"num_local_experts": 4, "hidden_size": 0}, ["mixture of experts", "hidden_size: 0 is not"]),
        (
            {"model_type": "mllama", "vision_config": {}, "text_config": {}, "quantization_config": {"bits": 4}},
            ["c: is of a model of several parts (text_config, vision_config), such as text and vision", "quantised"],
        ),
    ],
)
def test_configs_that_are_no_supported_model(changes: dict[str, Any], messages: list[str]):
    with pytest.raises(UsageError) as error:
        spec_from_config({**LLAMA, **changes}, "m", "c")
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "llama"', "\x00", "[" * 100_000])
def test_a_config_json_that_is_none(tmp_path: Path, text: str):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="JSON"):
        load_model(str(path))


def test_a_directory_without_config(tmp_path: Path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_differences_name_each_size_that_another_models_weights_have():
    model = load_model("7b")
    assert differences(model, model.hf_config) == []
    assert differences(model, {**model.hf_config, "max_position_embeddings": 4096}) == []
    found = differences(model, {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2})
    assert found[0] == "model_type is mistral, but 7b has llama"
    assert "hidden_size is 64, but 7b has 4096" in found
    names = {text.split()[0] for text in found}
    assert {
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size",
    } <= names  # fmt: skip


def test_a_config_that_leaves_out_what_transformers_fills_in_does_not_differ():
    config = {key: value for key, value in load_model("7b").hf_config.items() if key != "num_key_value_heads"}
    assert differences(load_model("7b"), config) == []


def test_only_what_transformers_cannot_fill_in_is_called_missing():
    with pytest.raises(UsageError) as error:
        spec_from_config({"model_type": "llama"}, "m", "c")
    missing = {problem.where.removeprefix("c: ") for problem in error.value.problems}
    assert missing == {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
    bare = spec_from_config({**LLAMA}, "m", "c")
    assert (bare.num_key_value_heads, bare.head_dim) == (4, 16)


def test_a_cache_without_refs_has_its_snapshot_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert load_model("org/name").hidden_size == LLAMA["hidden_size"]


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (None, 2048),
        ({"rope_type": "default"}, 2048),
        ({"type": "linear", "factor": 4.0}, 8192),
        ({"rope_type": "dynamic", "factor": 2}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 2048),
        ({"rope_type": "longrope", "factor": 8.0}, 2048),
        ({"rope_type": "linear", "factor": "4"}, 2048),
        ({"rope_type": "linear", "factor": float("inf")}, 2048),
        ({"rope_type": ["linear"], "factor": 2}, 2048),
        ("linear", 2048),
    ],
)
def test_the_longest_sequence_counts_scaled_positions(rope: Any, positions: int):
    for key in ("rope_scaling", "rope_parameters"):
        spec = spec_from_config({**LLAMA, "max_position_embeddings": 2048, key: rope}, "m", "c")
        assert spec.longest_sequence == positions


def test_a_directory_with_an_adapter(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an adapter, not a model"):
        load_model(str(tmp_path))
