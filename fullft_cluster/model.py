"""The noun ModelSpec: the shape of a decoder-only transformer, from a preset or a config.json; no weights, no torch.

Supported are the LLaMA family as Hugging Face names it (``llama``, ``mistral``, ``qwen2``): RMSNorm, rotary
positions, grouped-query attention, gated MLP. Their parameter count is a closed form (`ModelSpec.parameters`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fullft_cluster import yaml_struct
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.hub_cache import snapshots
from fullft_cluster.plan import Frozen
from fullft_cluster.resources import share

ModelType = Literal["llama", "mistral", "qwen2"]
SUPPORTED = ("llama", "mistral", "qwen2")
Count = Annotated[int, Meta(ge=1, le=10**7)]

_DEFAULTS: dict[str, dict[str, Any]] = {
    # What transformers' config classes fill in where a config.json leaves it out (configuration_llama.py, ...).
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
}


class Tensor(Frozen, frozen=True):
    """A weight: its name within the model or layer, and its number of elements."""

    name: str
    elements: int


class ModelSpec(Frozen, frozen=True, kw_only=True):
    """The architecture, and where its weights come from by default. Sizes are in elements."""

    name: str
    model_type: ModelType
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    tie_word_embeddings: bool
    attention_bias: bool
    max_position_embeddings: Count
    mlp_bias: bool = False
    weights: str | None = None
    """The preset's default: a hub id or ``random``; a directory that holds weights; None where nothing is known."""
    tokenizer: str | None = None
    """Absolute path of a tokenizer directory that the preset brings; None = the weights' own."""
    hf_config: dict[str, Any]
    """What goes into config.json."""

    @property
    def query_size(self) -> int:
        """Return the width of the queries: heads x head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Return the width of the keys (and of the values): key-value heads x head_dim."""
        return self.num_key_value_heads * self.head_dim

    def layer_tensors(self) -> Iterator[Tensor]:
        """Yield the weights of one decoder layer, as modeling_llama.py and its siblings make them."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.query_size, self.key_value_size
        yield Tensor(name="self_attn.q_proj.weight", elements=h * q)
        yield Tensor(name="self_attn.k_proj.weight", elements=h * kv)
        yield Tensor(name="self_attn.v_proj.weight", elements=h * kv)
        yield Tensor(name="self_attn.o_proj.weight", elements=q * h)
        if self.attention_bias:
            yield Tensor(name="self_attn.q_proj.bias", elements=q)
            yield Tensor(name="self_attn.k_proj.bias", elements=kv)
            yield Tensor(name="self_attn.v_proj.bias", elements=kv)
            if self.model_type == "llama":  # qwen2 has biases on q, k and v alone
                yield Tensor(name="self_attn.o_proj.bias", elements=h)
        yield from (Tensor(name=f"mlp.{n}_proj.weight", elements=h * i) for n in ("gate", "up", "down"))
        if self.mlp_bias:
            yield from (Tensor(name=f"mlp.{n}_proj.bias", elements=size) for n, size in _mlp_biases(h, i))
        yield Tensor(name="input_layernorm.weight", elements=h)
        yield Tensor(name="post_attention_layernorm.weight", elements=h)

    def outer_tensors(self) -> Iterator[Tensor]:
        """Yield the weights outside the layers; tied embeddings are one tensor."""
        yield Tensor(name="model.embed_tokens.weight", elements=self.vocab_size * self.hidden_size)
        yield Tensor(name="model.norm.weight", elements=self.hidden_size)
        if not self.tie_word_embeddings:
            yield Tensor(name="lm_head.weight", elements=self.vocab_size * self.hidden_size)

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one decoder layer."""
        return sum(tensor.elements for tensor in self.layer_tensors())

    @property
    def parameters(self) -> int:
        """Return the exact parameter count: outer tensors + layers x tensors of a layer.

        For LLaMA without biases: ``2Vh + L(2hq + 2hk + 3hi + 2h) + h`` with q and k the widths of queries and keys.
        """
        return sum(tensor.elements for tensor in self.outer_tensors()) + self.num_hidden_layers * self.layer_parameters

    @property
    def largest_tensor(self) -> int:
        """Return the elements of the largest single weight."""
        return max(t.elements for tensors in (self.layer_tensors(), self.outer_tensors()) for t in tensors)


def _mlp_biases(h: int, i: int) -> tuple[tuple[str, int], ...]:
    return (("gate", i), ("up", i), ("down", h))


class _Preset(Frozen, frozen=True, kw_only=True):
    """A file in configs/models/."""

    description: str = ""
    weights: str | None = None
    tokenizer: str | None = None
    """``sample`` = the tokenizer that ships in configs/sample/tokenizer."""
    config: dict[str, Any]


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in (share("configs") / "models").glob("*.yaml"))


def load_model(ref: str) -> ModelSpec:
    """Return the model that ``ref`` names.

    ``ref`` is a preset (``7b``), the path of a config.json or of a directory with one, or a hub id whose config.json
    lies in the local Hugging Face cache. Raises UsageError for anything else.
    """
    names = presets()
    if not ref:
        raise UsageError(_unknown(ref, names))
    if ref.lower() in names:
        return _load_preset(ref.lower())
    try:
        path = Path(ref).expanduser()
        if path.is_dir():
            return _load_directory(path, path.resolve().name, str(path.resolve()))
        if path.is_file():
            return _load_config(path, path.resolve().parent.name, None)
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a name too long, an unknown ~user
        pass
    for snapshot in snapshots(ref, os.environ):
        if (snapshot / "config.json").is_file():
            return _load_config(snapshot / "config.json", ref.rpartition("/")[2], ref)
    raise UsageError(_unknown(ref, names))


def _unknown(ref: str, names: list[str]) -> Problem:
    """Say why no model was found under a reference."""
    looks_like_path = ref.startswith((".", "/", "~")) or ref.endswith(".json")
    if looks_like_path:
        return Problem("model", f"there is no file or directory {ref!r}", "Give a config.json or a directory with one.")
    if ref.count("/") == 1:
        fix = (
            f"Run `hf download {ref} config.json` where there is internet, or give a path or one of {', '.join(names)}."
        )
        return Problem("model", f"{ref!r} is neither a path nor in the local Hugging Face cache", fix)
    return Problem("model", f"unknown model {ref!r}", did_you_mean(ref, names))


def _load_preset(name: str) -> ModelSpec:
    located = yaml_struct.load_yaml(share("configs") / "models" / f"{name}.yaml")
    problems = [*located.problems, *yaml_struct.check(_Preset, located.data, located.where)]
    if problems:
        raise UsageError(problems)
    preset = yaml_struct.convert(_Preset, located.data)
    tokenizer = share("configs") / "sample" / "tokenizer" if preset.tokenizer == "sample" else None
    spec = spec_from_config(preset.config, name, located.path)
    return msgspec.structs.replace(spec, weights=preset.weights, tokenizer=str(tokenizer) if tokenizer else None)


def _load_directory(path: Path, name: str, absolute: str) -> ModelSpec:
    config = path / "config.json"
    if not config.is_file():
        raise UsageError(Problem(str(path), "has no config.json", "Give a directory that `save_pretrained` wrote."))
    holds_weights = any(next(path.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return _load_config(config, name, absolute if holds_weights else None)


def _load_config(path: Path, name: str, weights: str | None) -> ModelSpec:
    return msgspec.structs.replace(spec_from_config(read_hf_config(path), name, str(path)), weights=weights)


def read_hf_config(path: Path) -> dict[str, Any]:
    """Return what a config.json holds. Raises UsageError for what is not a JSON object."""
    try:
        if path.stat().st_size > yaml_struct.MAX_BYTES:
            raise UsageError(Problem(str(path), "is larger than 1 MiB", "Give a config.json, not weights or data."))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(Problem(f"{path}{line}", f"is not JSON: {error}", "Give a config.json.")) from None
    if not isinstance(config, dict):
        raise UsageError(Problem(str(path), "is not a JSON object", "Give the config.json of a model."))
    return config


def spec_from_config(config: Mapping[str, Any], name: str, where: str) -> ModelSpec:
    """Return the ModelSpec of a Hugging Face config. Raises UsageError, every problem at once, at ``where``."""
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        what = f"model_type {model_type!r} is not a supported decoder-only model" if model_type else "has no model_type"
        raise UsageError(Problem(where, what, f"Give a model of one of the types {', '.join(SUPPORTED)}."))
    values = _values(config, model_type)
    problems = [
        Problem(f"{where}: {key}", "is missing", "Give the config.json of a model.")
        for key in _SIZES
        if values.get(key) is None and key not in _DERIVED
    ]
    for key in (*_SIZES, *_FLAGS):
        kind: Any = Count if key in _SIZES else bool
        problem = yaml_struct.check_value(kind, values[key], f"{where}: {key}") if values.get(key) is not None else None
        problems += [problem] if problem else []
    if config.get("quantization_config"):
        problems.append(Problem(where, "holds quantised weights", "Full fine-tuning needs the unquantised model."))
    if not problems:
        problems += _contradictions(values, where)
    if problems:
        raise UsageError(problems)
    return ModelSpec(name=name, model_type=model_type, hf_config=dict(config), **values)


_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
_DERIVED = ("num_key_value_heads", "head_dim")
"""Left out, they follow from the heads and hidden_size (configuration_llama.py), so they are never what is missing."""
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")


def _values(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Return the sizes and flags of a config, with transformers' defaults where it has none."""
    given = {**_DEFAULTS[model_type], **{key: value for key, value in config.items() if value is not None}}
    heads, hidden = given.get("num_attention_heads"), given.get("hidden_size")
    values = {key: given.get(key) for key in _SIZES}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = max(hidden // heads, 1)
    values |= {key: given.get(key, False) for key in _FLAGS}
    if model_type == "qwen2":  # not an option there: always on q, k and v
        values["attention_bias"] = True
    if model_type != "llama":
        values["mlp_bias"] = False
    return values


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
