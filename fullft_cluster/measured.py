"""What runs on a cluster were measured at: a small file beside its profile, which `calibrate` writes and plans read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster.config_load import read_config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU, clusters, load_cluster, load_gpu
from fullft_cluster.model import ModelSpec, load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner.calibration import WARM_UP, Measured, summarise
from fullft_cluster.planner.evaluate import setup_of
from fullft_cluster.planner.speed import flops_per_token, step_seconds
from fullft_cluster.rundir import RunDir, write_atomic


def measured_path(cluster: str, environ: Mapping[str, str]) -> Path:
    """Return the file of a cluster: beside a profile of one's own, in the user's configuration for a shipped one."""
    if cluster in clusters():
        home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
        return Path(home) / "fullft-cluster" / f"{cluster}.measured.json"
    return Path(cluster).expanduser().with_suffix(".measured.json")


def load_measured(cluster: str, environ: Mapping[str, str] = os.environ) -> tuple[Measured, ...]:
    """Return what was measured on a cluster; nothing where there is no file. Raises UsageError for a damaged one."""
    path = measured_path(cluster, environ)
    try:
        data = path.read_bytes()
    except OSError:
        return ()
    try:
        return msgspec.json.decode(data, type=tuple[Measured, ...])
    except msgspec.DecodeError as error:
        fix = "Delete it, and calibrate again."
        raise UsageError(Problem(str(path), f"is not what calibrate writes: {error}", fix)) from None


def calibrate_from(run: RunDir, environ: Mapping[str, str] = os.environ) -> tuple[Measured, Path]:
    """Learn from a run's metrics and write the cluster's file; return what was learnt, and where it stands.

    A measurement of the same engine, GPU, offload, number of nodes and model is replaced. Raises UsageError where the
    run has no plan or too few steps.
    """
    try:
        plan, config = Plan.from_json(run.plan.read_bytes()), read_config(run.config)
    except (OSError, msgspec.DecodeError) as error:
        what = f"has no plan of this version: {error}"
        raise UsageError(Problem(str(run.path), what, "Give a run that this version submitted.")) from None
    cluster = load_cluster(config.cluster or plan.cluster)
    setup = setup_of(plan, load_model(config.model or plan.model.name))
    forecast = sum(step_seconds(setup, load_gpu(plan.gpu), cluster).values())
    tokens = plan.global_batch_size * plan.seq_len
    seconds = [tokens / speed for speed in _speeds(run.metrics)]
    slowdown, spread = summarise(seconds, forecast)
    _check_possible(plan, setup.model, forecast * slowdown)
    found = Measured(
        engine=plan.engine,
        gpu=plan.gpu,
        offload=plan.offload,
        nodes=plan.nodes,
        model=plan.model.name,
        slowdown=slowdown,
        spread=spread,
        steps=len(seconds),
        run=run.name,
        date=datetime.now(UTC).date().isoformat(),
    )
    try:
        msgspec.convert(msgspec.to_builtins(found), Measured)  # what plans are to read has to be what they accept
    except msgspec.ValidationError:
        what = f"says that a step took {slowdown:.3g} x the forecast, give or take {spread:.0%}"
        raise UsageError(Problem("metrics.jsonl", what, "Give a run on the GPUs of its plan.")) from None
    return found, _keep(found, config.cluster or plan.cluster, environ)


def _keep(found: Measured, reference: str, environ: Mapping[str, str]) -> Path:
    """Write a measurement into the file of its cluster, in place of an older one of its kind; return the file."""
    path = measured_path(reference, environ)
    others = [one for one in load_measured(reference, environ) if _key(one) != _key(found)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(msgspec.to_builtins([*others, found]), indent=2) + "\n")
    except OSError as error:
        fix = "Copy the profile to a directory of your own, and give its path as --cluster."
        raise UsageError(Problem(str(path), f"cannot be written: {error.strerror}", fix)) from None
    return path


def _check_possible(plan: Plan, model: ModelSpec, seconds: float) -> None:
    """Raise UsageError for steps that no GPU of the plan can do in ``seconds``: the metrics are of something else."""
    if plan.gpu == CPU:
        return
    flops = flops_per_token(model, plan.seq_len, recompute=False) * plan.global_batch_size * plan.seq_len
    mfu = flops / (seconds * plan.gpus * load_gpu(plan.gpu).peak_tflops * 1e12)
    if mfu > 1:
        what = f"says that the run reached {mfu:.0%} of what {plan.gpus} x {plan.gpu} can do"
        raise UsageError(Problem("metrics.jsonl", what, "Give a run on the GPUs of its plan."))


def _key(one: Measured) -> tuple[Any, ...]:
    return (one.engine, one.gpu, one.offload, one.nodes, one.model)


def _speeds(metrics: Path) -> Iterator[float]:
    """Yield the tokens per second of all GPUs together, without the first lines of each attempt."""
    seen: dict[str, int] = {}
    try:
        lines = metrics.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut off when the node went down
            continue
        if not isinstance(row, dict):
            continue
        attempt, speed = str(row.get("attempt")), row.get("tokens_per_second")
        if isinstance(speed, bool) or not isinstance(speed, int | float):
            continue  # a line of an evaluation has none
        seen[attempt] = seen.get(attempt, 0) + 1
        if seen[attempt] > WARM_UP and 0 < speed < math.inf:
            yield float(speed)
