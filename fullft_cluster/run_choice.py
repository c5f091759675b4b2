"""Which run directory a job gets, and what to do with one that is there already."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from pathlib import Path

import yaml

from fullft_cluster.config import Config
from fullft_cluster.errors import FullftError, Problem, UsageError
from fullft_cluster.kubernetes_names import longest_name, object_name
from fullft_cluster.quoting import check_name
from fullft_cluster.row_sources import data_name
from fullft_cluster.runtime.pod import FILES

DELETE = "or delete that directory, with its checkpoints"


def choose_run_dir(config: Config, taken: Container[str] = ()) -> Path:
    """Return the run directory: the given name's, or the first free one of the name made of model and data.

    Raises UsageError when the given name is no name or is taken. One that Kubernetes' pods will find, and that is
    seen from here, is not taken yet: `goes_on` decides.
    """
    runs_dir = Path(config.output.runs_dir)
    if config.name is not None:
        path = runs_dir / check_name(config.name)
        if config.backend != "kubernetes" and path.exists():
            raise UsageError(Problem("--name", f"the run directory {path} exists", _way_out(path)))
        return path
    stem = data_name(config.data)
    model = Path(config.model or "model")
    shown = model.parent.name if model.name == "config.json" else model.name
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{shown}-{stem}").strip("-._")[:56].strip("-._") or "run"
    if config.backend == "kubernetes":  # a run and its objects have one name
        base = object_name(base, longest_name(config.kubernetes.kind, nodes=1000) - len("-999"))
    candidates = [base, *(f"{base}-{number}" for number in range(2, 1000))]
    for candidate in candidates:
        if candidate not in taken and not (runs_dir / candidate).exists():
            return runs_dir / check_name(candidate)
    raise FullftError(Problem("--name", f"{runs_dir} holds a thousand runs of {base}", "Choose a name."))


def _way_out(path: Path) -> str:
    """Return what to do about a run directory that is in the way of another backend's run than Kubernetes'."""
    if _run_json(path).get("backend") in ("local", "slurm"):
        return f"Choose another name, or go on with it: `fullft-cluster resume {path.name}`."
    return f"Choose another name, {DELETE}."


def same_config(path: Path, text: str) -> str:
    """Return the config.yaml of the run directory where its values are those of ``text``, else ``text``.

    The comments say where each value came from: a name that was made of model and data the first time is given the
    second time, and the run is the same. Whose directory it is, the pods tell by the bytes.
    """
    there = _text(path / "config.yaml")
    try:
        return there if there is not None and yaml.safe_load(there) == yaml.safe_load(text) else text
    except yaml.YAMLError:
        return text


def goes_on(path: Path, files: Mapping[str, str]) -> list[str]:
    """Return what to say of a run directory on a volume that is mounted here: this very run's, which goes on.

    That is the way on after `delete`. Raises UsageError where it is another run's, as the pods would, and where the
    run is completed.
    """
    if not path.exists():
        return []
    different = [name for name in FILES if _text(path / name) != files.get(name)]
    if different:
        what = f"the run directory {path} exists, and is not this run's: {', '.join(different)} differ"
        raise UsageError(Problem("--name", what, f"Choose another --name, {DELETE}."))
    if _run_json(path).get("state") == "completed":
        what = f"the run directory {path} exists, and its run is completed"
        raise UsageError(Problem("--name", what, f"Choose another --name to train further, {DELETE}."))
    return [f"the run directory {path} is this very run's: it goes on from its newest checkpoint"]


def _run_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(_text(path / "run.json") or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
