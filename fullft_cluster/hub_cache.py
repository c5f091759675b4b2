"""The layout of the Hugging Face cache, read without the hub's library and without a network.

The cache: ``$HF_HUB_CACHE``, else ``$HF_HOME/hub``, else ``~/.cache/huggingface/hub``; a model lies under
``models--ORG--NAME/snapshots/COMMIT``, and ``refs/main`` names the commit that is loaded
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return the directory of all that the hub's library keeps.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hfhome
    """
    general = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environ.get("HF_HOME") or f"{general}/huggingface")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the directory of the cached models."""
    given = environ.get("HF_HUB_CACHE")
    return _expanded(given) if given else hub_home(environ) / "hub"


def snapshots(ref: str, environ: Mapping[str, str]) -> list[Path]:
    """Return the cached snapshots of a hub id that may be loaded: the one that refs/main names, else all there are.

    None for a text that is no hub id. A snapshot may be incomplete.
    """
    parts = ref.split("/")
    if len(parts) > 2 or any(not part or part.startswith(".") or "\0" in part for part in parts):
        return []
    folder = hub_cache(environ) / f"models--{'--'.join(parts)}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        return [folder / "snapshots" / revision]
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        return []
    try:
        return sorted((folder / "snapshots").iterdir())
    except OSError:
        return []


def has_data_set(ref: str, environ: Mapping[str, str]) -> bool:
    """Return whether something of a data set is cached: as `load_dataset` keeps it, or as `hf download` does.

    ``$HF_DATASETS_CACHE``, else ``datasets`` beside the hub's cache, has it by its name in snake case
    (https://github.com/huggingface/datasets/blob/main/src/datasets/naming.py).
    """
    owner, _, name = ref.partition("/")
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()
    given = environ.get("HF_DATASETS_CACHE")
    prepared = (_expanded(given) if given else hub_home(environ) / "datasets") / f"{owner}___{snake}"
    downloaded = hub_cache(environ) / f"datasets--{owner}--{name}" / "snapshots"
    try:
        return any(path.is_dir() and any(path.iterdir()) for path in (prepared, downloaded))
    except OSError:
        return False


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home directory, or an unknown ~user
        return Path(path)
