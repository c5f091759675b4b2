"""The shapes of models by name: presets in configs/models/, a config.json or its directory, a hub id; no torch.

Users import the noun ModelSpec and what reads a config.json from here too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from fullft_cluster import struct_check, yaml_struct
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.hf_config import SUPPORTED, differences, read_hf_config, spec_from_config
from fullft_cluster.hub_cache import snapshots
from fullft_cluster.model_shape import ModelSpec, Tensor
from fullft_cluster.plan import Frozen
from fullft_cluster.resources import share

__all__ = ["ModelSpec", "Tensor", "differences", "load_model", "presets", "read_hf_config", "spec_from_config"]


class _Preset(Frozen, frozen=True, kw_only=True):
    """A file in configs/models/."""

    description: str = ""
    aliases: tuple[str, ...] = ()
    """Other names that people use for it."""
    weights: str | None = None
    tokenizer: str | None = None
    """``sample`` = the tokenizer that ships in configs/sample/tokenizer."""
    variants: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Hub ids of models of the same shape, each with what its config.json has otherwise."""
    config: dict[str, Any]


Fetch = Callable[[str, Mapping[str, str]], Mapping[str, Any] | None]
"""What asks the hub for a config.json, as `hub.fetch_config`."""


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in (share("configs") / "models").glob("*.yaml"))


def load_model(ref: str, fetch: Fetch | None = None) -> ModelSpec:
    """Return the model that ``ref`` names.

    ``ref`` is a preset (``llama-2-7b``, or ``Llama2-7B``), the path of a config.json or of a directory with one, or a
    hub id whose config.json lies in the local Hugging Face cache or that a preset brings; with ``fetch``, any hub id.
    Raises UsageError for anything else.
    """
    names = presets()
    if not ref:
        raise UsageError(_unknown(ref, names))
    if ref.lower() in names:
        return _preset_by_name(ref)
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
    preset = _preset_by_other_name(ref, names)
    if preset is not None:
        return preset
    fetched = fetch(ref, os.environ) if fetch and not _looks_like_path(ref) else None
    if fetched is not None:
        return structs.replace(spec_from_config(fetched, ref.rpartition("/")[2], ref), weights=ref)
    raise UsageError(_unknown(ref, names))


def _unknown(ref: str, names: list[str]) -> Problem:
    """Say why no model was found under a reference."""
    if _looks_like_path(ref):
        return Problem("model", f"there is no file or directory {ref!r}", "Give a config.json or a directory with one.")
    if ref.count("/") == 1:
        fix = f"Run `hf download {ref} config.json` where there is internet, or give a path or a preset's name."
        return Problem("model", f"{ref!r} is neither a path nor in the local Hugging Face cache", fix)
    return Problem("model", f"unknown model {ref!r}", _nearest(ref, names))


OTHER_FAMILIES = ("mixtral", "gemma", "falcon", "bloom", "opt", "gpt", "t5", "bert", "mamba", "olmo", "glm")
"""Names that people try, of architectures that are not planned for."""


def _nearest(ref: str, names: list[str]) -> str:
    """Return what may have been meant: presets of the family, else of the size, else a name that is written alike."""
    word = ref.lower().replace("_", "-")
    if other := next((family for family in OTHER_FAMILIES if word.startswith(family)), None):
        return f"The {other} architecture is not planned for; {', '.join(SUPPORTED)} are."
    size = re.fullmatch(r"(?:.*-)?(\d+(?:\.\d+)?b)", word)
    alike = [] if size and size[1] == word else get_close_matches(word, names, n=3, cutoff=0.75)
    alike = alike or [name for name in names if size and size[1] in name.split("-")]
    return f"Did you mean {' or '.join(map(repr, alike))}?" if alike else did_you_mean(ref, names)


def _looks_like_path(ref: str) -> bool:
    return ref.startswith((".", "/", "~")) or ref.endswith(".json")


# --- presets


def _preset_by_name(ref: str) -> ModelSpec:
    """Return the preset; raise UsageError where a model lies in a directory of that name too: either may be meant."""
    spec = _as_spec(ref.lower(), *_read_preset(ref.lower()))
    if (Path(ref) / "config.json").is_file():
        fix = f"Write ./{ref} for the directory" + (f", or {spec.weights} for the preset." if spec.weights else ".")
        raise UsageError(Problem("model", f"{ref!r} is a preset, and a directory here holds a model too", fix))
    return spec


def _preset_by_other_name(ref: str, names: list[str]) -> ModelSpec | None:
    """Return the preset that a name written otherwise, an alias, or a hub id of its shape leads to."""
    for name in names:
        if _plain(name) == _plain(ref):
            return _as_spec(name, *_read_preset(name))
    for name in names:
        # A look at the text spares reading forty files as YAML.
        if ref.lower() not in (share("configs") / "models" / f"{name}.yaml").read_text(encoding="utf-8").lower():
            continue
        preset, path = _read_preset(name)
        if ref.lower() in (alias.lower() for alias in preset.aliases):
            return _as_spec(name, preset, path)
        for hub_id, changes in {preset.weights or "": {}, **preset.variants}.items():
            if hub_id.lower() == ref.lower():
                changed = structs.replace(preset, weights=hub_id, config={**preset.config, **changes})
                return structs.replace(_as_spec(name, changed, path), name=hub_id.rpartition("/")[2])
    return None


def _plain(name: str) -> str:
    """Return a name as people type it: ``Llama2_7B`` and ``llama-2-7b`` are one."""
    return name.lower().replace("-", "").replace("_", "")


def _read_preset(name: str) -> tuple[_Preset, str]:
    """Return a preset and the path of its file. Raises UsageError with every problem of the file."""
    located = yaml_struct.load_yaml(share("configs") / "models" / f"{name}.yaml")
    problems = [*located.problems, *struct_check.check(_Preset, located.data, located.where)]
    if problems:
        raise UsageError(problems)
    return struct_check.convert(_Preset, located.data), located.path


def _as_spec(name: str, preset: _Preset, path: str) -> ModelSpec:
    tokenizer = share("configs") / "sample" / "tokenizer" if preset.tokenizer == "sample" else None
    spec = spec_from_config(preset.config, name, path)
    return structs.replace(spec, weights=preset.weights, tokenizer=str(tokenizer) if tokenizer else None)


# --- files


def _load_directory(path: Path, name: str, absolute: str) -> ModelSpec:
    config = path / "config.json"
    if not config.is_file():
        adapter = (path / "adapter_config.json").is_file()
        what = "holds an adapter, not a model (it has no config.json)" if adapter else "has no config.json"
        fix = "Merge it into its model first (peft, `merge_and_unload`)." if adapter else _SAVED
        raise UsageError(Problem(str(path), what, fix))
    holds_weights = any(next(path.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return _load_config(config, name, absolute if holds_weights else None)


_SAVED = "Give a directory that `save_pretrained` wrote."


def _load_config(path: Path, name: str, weights: str | None) -> ModelSpec:
    return structs.replace(spec_from_config(read_hf_config(path), name, str(path)), weights=weights)
