"""Paths of a configuration: made absolute, and whether they can be seen from this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.config_load import Resolved
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import clusters
from fullft_cluster.model import presets
from fullft_cluster.row_sources import is_hub_id


def absolute(resolved: Resolved) -> Resolved:
    """Return the configuration with every path absolute: a job does not start in the directory of its submit."""
    config = resolved.config
    runs_dir = _absolute_path(config.output.runs_dir, "output.runs_dir")
    cache_dir = (
        _absolute_path(config.data.cache_dir, "data.cache_dir") if config.data.cache_dir else f"{runs_dir}/.cache"
    )
    model = config.model
    if model and model.lower() not in presets() and is_there(model):
        model = _absolute_path(model, "model")
    tokenizer = config.tokenizer
    if tokenizer and is_there(tokenizer):  # else a hub id
        tokenizer = _absolute_path(tokenizer, "tokenizer")
    cluster = config.cluster
    if cluster and cluster not in clusters() and is_there(cluster):
        cluster = _absolute_path(cluster, "cluster")
    return _absolute_data(resolved).changed(
        model=model, cluster=cluster, tokenizer=tokenizer, data__cache_dir=cache_dir, output__runs_dir=runs_dir
    )


def _absolute_data(resolved: Resolved) -> Resolved:
    """Return the configuration with the paths of its data absolute; ids of data sets on the hub stay."""
    data = resolved.config.data
    changes: dict[str, Any] = {}
    for key in ("train", "validation", "chat_template"):
        if path := getattr(data, key):
            on_hub = key != "chat_template" and is_hub_id(path)
            changes[f"data__{key}"] = path if on_hub else _absolute_path(path, f"data.{key}")
    if data.sources:
        changes["data__sources"] = [
            msgspec.to_builtins(source)
            | ({} if is_hub_id(source.path) else {"path": _absolute_path(source.path, f"data.sources[{n}].path")})
            for n, source in enumerate(data.sources)
        ]
    return resolved.changed(**changes)


def _absolute_path(path: str, where: str) -> str:
    """Return a path as an absolute one. Raises UsageError where there is nothing that it could be relative to."""
    try:
        return str(Path(path).expanduser().absolute())
    except FileNotFoundError:
        what = f"{path!r} is relative to the current directory, which no longer exists"
        raise UsageError(Problem(where, what, "Change to one that does, or give an absolute path.")) from None
    except RuntimeError as error:  # ~user
        raise UsageError(Problem(where, f"{path!r}: {error}", "Give a path without ~.")) from None


def is_there(path: str) -> bool:
    """Return whether there is something at a path that can be looked at."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):
        return False


def is_elsewhere(config: Config, path: str) -> bool:
    """Return whether a path lies on a volume of the cluster that is not mounted here: nothing is known of it."""
    mount = Path(config.kubernetes.mount_path or config.output.runs_dir)
    inside = mount.is_absolute() and Path(path).is_relative_to(mount)
    return config.backend == "kubernetes" and inside and not is_there(str(mount))
