"""The shapes of models by name: presets in configs/models/, a config.json or its directory, a hub id; no torch.

Users import the noun ModelSpec and what reads a config.json from here too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster import yaml_struct
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.hf_config import differences, read_hf_config, spec_from_config
from fullft_cluster.hub_cache import snapshots
from fullft_cluster.model_shape import ModelSpec, Tensor
from fullft_cluster.plan import Frozen
from fullft_cluster.resources import share

__all__ = ["ModelSpec", "Tensor", "differences", "load_model", "presets", "read_hf_config", "spec_from_config"]


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
