"""Reads a Hugging Face config.json as a ModelSpec, or says why it is none that is trained here.

Trained are the decoder-only transformers of one kind: RMSNorm, rotary positions, grouped-query attention, gated MLP
(``llama`` and what is built like it). What their configs leave out is filled in as transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fullft_cluster import struct_check, yaml_struct
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.model_shape import Count, ModelSpec

SUPPORTED = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""The model_types that are planned and trained."""

MOST_PARAMETERS = 10**13
"""No dense model is so large; a config that says so has a digit too many."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    # What transformers' config classes fill in where a config.json leaves it out (configuration_llama.py, ...).
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "phi3": {"max_position_embeddings": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
_FIXED: dict[str, dict[str, bool]] = {
    # Flags that are no option there: whatever a config says of them, the model has them so.
    "llama": {},
    "mistral": {"attention_bias": False, "mlp_bias": False},
    "phi3": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"attention_bias": True, "mlp_bias": False},
    "qwen3": {"mlp_bias": False},
}
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
_DERIVED = ("num_key_value_heads", "head_dim")
"""Left out, they follow from the heads and hidden_size (configuration_llama.py), so they are never what is missing."""
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PARTS = ("text_config", "vision_config", "audio_config", "thinker_config")
_ENCODERS = ("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")


def read_hf_config(path: Path) -> dict[str, Any]:
    """Return what a config.json holds. Raises UsageError for what is not a JSON object."""
    try:
        if path.stat().st_size > yaml_struct.MAX_BYTES:
            raise UsageError(Problem(str(path), "is larger than 1 MiB", "Give a config.json, not weights or data."))
        return parse_hf_config(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(Problem(str(path), f"cannot be read: {error.strerror}", "Give a config.json.")) from None


def parse_hf_config(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object that ``data`` is. Raises UsageError, at ``where``, when it is none."""
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(Problem(f"{where}{line}", f"is not JSON: {error}", "Give a config.json.")) from None
    if not isinstance(config, dict):
        raise UsageError(Problem(where, "is not a JSON object", "Give the config.json of a model."))
    return config


def spec_from_config(config: Mapping[str, Any], name: str, where: str) -> ModelSpec:
    """Return the ModelSpec of a Hugging Face config. Raises UsageError, every problem at once, at ``where``."""
    problems = list(_other_kinds(config, where))
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        if not problems:
            what = f"model_type {model_type!r} is not supported" if model_type else "has no model_type"
            problems = [Problem(where, what, _SUPPORTED_FIX)]
        raise UsageError(problems)
    values = _values(config, model_type)
    problems += [
        Problem(f"{where}: {key}", "is missing", "Give the config.json of a model.")
        for key in _SIZES
        if values.get(key) is None and key not in _DERIVED
    ]
    for key in (*_SIZES, *_FLAGS):
        kind: Any = Count if key in _SIZES else bool
        problem = (
            struct_check.check_value(kind, values[key], f"{where}: {key}") if values.get(key) is not None else None
        )
        problems += [problem] if problem else []
    if not problems:
        problems += _contradictions(values, where)
    if problems:
        raise UsageError(problems)
    spec = ModelSpec(name=name, model_type=model_type, hf_config=dict(config), **values)
    if spec.parameters > MOST_PARAMETERS:
        what = f"these sizes make {spec.parameters:.3g} parameters, more than any model has"
        raise UsageError(
            Problem(where, what, "Check hidden_size, intermediate_size, num_hidden_layers and vocab_size.")
        )
    return spec


_SUPPORTED_FIX = f"Give a dense decoder-only model of one of the types {', '.join(SUPPORTED)}."


def _other_kinds(config: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield why a config is of no dense, unquantised, decoder-only language model, each reason by itself."""
    model_type = config.get("model_type")
    parts = [key for key in _PARTS if isinstance(config.get(key), Mapping)]
    experts = {key: config[key] for key in _EXPERTS if isinstance(config.get(key), int) and config[key] > 1}
    if parts:
        what = f"is of a model of several parts ({', '.join(parts)}), such as text and vision"
        yield Problem(where, what, f"Only language models are trained here. {_SUPPORTED_FIX}")
    if config.get("is_encoder_decoder") is True:
        yield Problem(where, f"is of an encoder-decoder ({model_type})", _SUPPORTED_FIX)
    elif isinstance(model_type, str) and model_type in _ENCODERS:
        yield Problem(where, f"is of an encoder ({model_type}), which generates no text", _SUPPORTED_FIX)
    if experts or (isinstance(model_type, str) and (model_type.endswith("_moe") or model_type == "mixtral")):
        said = ", ".join(f"{key} {value}" for key, value in experts.items()) or model_type
        what = f"is of a mixture of experts ({said}): memory and time follow other rules there"
        yield Problem(where, what, _SUPPORTED_FIX)
    if config.get("quantization_config"):
        yield Problem(where, "holds quantised weights", "Full fine-tuning needs the unquantised model.")


def _values(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Return the sizes and flags of a config, with transformers' defaults where it has none."""
    given = {**_DEFAULTS.get(model_type, {}), **{key: value for key, value in config.items() if value is not None}}
    heads, hidden = given.get("num_attention_heads"), given.get("hidden_size")
    values = {key: given.get(key) for key in _SIZES}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = max(hidden // heads, 1)
    return values | {key: given.get(key, False) for key in _FLAGS} | _FIXED.get(model_type, {})


def differences(spec: ModelSpec, config: Mapping[str, Any]) -> list[str]:
    """Return how a config.json differs from a model in what its weights' shapes follow from; empty when it does not."""
    values = {**_values(config, spec.model_type), "model_type": config.get("model_type")}
    keys = ("model_type", *(key for key in (*_SIZES, *_FLAGS) if key != "max_position_embeddings"))
    return [
        f"{key} is {values[key]}, but {spec.name} has {getattr(spec, key)}"
        for key in keys
        if values[key] is not None and values[key] != getattr(spec, key)
    ]


def _contradictions(values: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield what cannot be true of one model."""
    heads, kv, hidden = values["num_attention_heads"], values["num_key_value_heads"], values["hidden_size"]
    if heads % kv:
        fix = "Write a number of key-value heads that divides the heads."
        yield Problem(f"{where}: num_key_value_heads", f"{kv} does not divide the {heads} attention heads", fix)
    if values["head_dim"] == hidden // heads and hidden % heads:
        fix = "Write a number of heads that divides hidden_size, or head_dim."
        yield Problem(f"{where}: num_attention_heads", f"{heads} does not divide hidden_size {hidden}", fix)
