"""A run on other GPUs than before: planned anew, with what is learnt kept as it is (`resume --gpus-per-node`).

The global batch, the data and all mathematics stay; micro-batch, accumulation and what follows from them are the
planner's again. Engine and ZeRO stage stay too, because a checkpoint is bound to them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fullft_cluster.config import Config
from fullft_cluster.config_load import Resolved, read_config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import load_cluster
from fullft_cluster.inventory import Inventory, Site
from fullft_cluster.job import make_job
from fullft_cluster.measured import load_measured
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.planner.task import BYTES_PER_TOKEN
from fullft_cluster.render import Rendered, render
from fullft_cluster.road import to_plan
from fullft_cluster.rundir import RunDir, fsync_path, write_atomic

MATHEMATICS = (
    "engine", "zero_stage", "precision", "global_batch_size", "seq_len", "learning_rate", "warmup_ratio",
    "weight_decay", "max_grad_norm", "adam_betas", "adam_eps", "epochs", "max_steps", "seed",
)  # fmt: skip
"""Fields of the plan that a resume cannot change."""

_ORIGIN = re.compile(r"^(  )?([a-z_]+):(?: .*  # (.*))?$")


@dataclass(frozen=True)
class Relaid:
    """A new plan of a run, and its files."""

    plan: Plan
    rendered: Rendered


def relayout(run: RunDir, nodes: int | None, gpus_per_node: int | None, inventory: Inventory | None) -> Relaid:
    """Plan a run for other nodes and render its files; nothing is written yet.

    Raises UsageError where the global batch does not divide, with the nearest numbers of GPUs by which it does, and
    DoesNotFitError where the memory does not suffice.
    """
    before = Plan.from_json(run.plan.read_bytes())
    nodes, gpus_per_node = nodes or before.nodes, gpus_per_node or before.gpus_per_node
    if problem := indivisible(before.global_batch_size, nodes * gpus_per_node):
        raise UsageError(problem)
    resolved = _changed(run, before, nodes, gpus_per_node)
    plan, site = before, None
    if inventory is None:
        config = resolved.config
        model, measured = load_model(str(config.model)), load_measured(resolved.cluster.name)
        plan = make_plan(config, model, resolved.cluster, _data(before), measured)
    else:
        planned = to_plan(resolved, inventory)
        resolved, plan, site = planned.resolved, planned.plan, planned.site
    if changed := list(_other_mathematics(before, plan)):
        raise UsageError(changed)
    return Relaid(plan, _rendered(run, resolved, plan, site))


def _rendered(run: RunDir, resolved: Resolved, plan: Plan, site: Site | None) -> Rendered:
    return render(make_job(resolved, plan, run.path, sys.executable, site))


def indivisible(global_batch: int, gpus: int) -> Problem | None:
    """Return what is wrong where a global batch does not divide by so many GPUs."""
    if global_batch % gpus == 0:
        return None
    divisors = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
    near = [*[number for number in divisors if number < gpus][-1:], *[d for d in divisors if d > gpus][:1]]
    what = f"the global batch of {global_batch} sequences, which stays as it is, does not divide by {gpus} GPUs"
    return Problem("resume", what, f"Take {' or '.join(map(str, near))} GPUs.")


def _changed(run: RunDir, before: Plan, nodes: int, gpus_per_node: int) -> Resolved:
    """Return the run's configuration for other nodes, with what the planner chose of the mathematics made fast."""
    config = read_config(run.config)
    micro = config.resources.micro_batch_size
    values: dict[str, Any] = {
        "train.global_batch_size": before.global_batch_size,
        "train.learning_rate": before.learning_rate,
        "train.epochs": before.epochs,
        "resources.nodes": nodes,
        "resources.gpus_per_node": gpus_per_node,
        "resources.gpus": None,
        "resources.max_gpus": None,
        "resources.deadline": None,
    }
    if before.engine == "deepspeed":
        values["resources.zero_stage"] = before.zero_stage
    if micro and before.global_batch_size % (micro * nodes * gpus_per_node):
        values["resources.micro_batch_size"] = None
    if config.slurm.gpus_per_node:  # TYPE:COUNT, or COUNT
        kind = config.slurm.gpus_per_node.rpartition(":")[0]
        values["slurm.gpus_per_node"] = f"{kind}:{gpus_per_node}" if kind else str(gpus_per_node)
    origins = origins_in(run.config.read_text())
    origins |= {key: "resume" for key, value in values.items() if _value(config, key) != value}
    cluster = load_cluster(config.cluster or "")
    resolved = Resolved(config, cluster, origins)
    return resolved.changed(**{key.replace(".", "__"): value for key, value in values.items()})


def _value(config: Config, dotted: str) -> Any:
    section, name = dotted.split(".")
    return getattr(getattr(config, section), name)


def origins_in(text: str) -> dict[str, str]:
    """Return where each value of a config.yaml came from, as its comments say."""
    origins: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        match = _ORIGIN.match(line)
        if match and match[3] is None and not match[1]:
            section = f"{match[2]}."
        elif match and (origin := match[3].partition(": planned ")[0]) != "default":
            origins[f"{section}{match[2]}" if match[1] else match[2]] = origin
    return origins


def _data(before: Plan) -> Data:
    """Return what is known of the data: it may no longer lie where it was, once it is prepared."""
    tokens = before.time.tokens
    return Data(rows=before.rows, text_bytes=round(tokens / before.epochs * BYTES_PER_TOKEN) if tokens else None)


def _other_mathematics(before: Plan, after: Plan) -> Iterator[Problem]:
    for name in MATHEMATICS:
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            yield Problem(name, f"was {was} and would be {now}", "Submit a new run to learn something else.")


def write(run: RunDir, relaid: Relaid) -> str:
    """Put the new files in the place of the old ones, which are kept; return where."""
    files: Mapping[str, str] = relaid.rendered.files
    attempt = int(run.read_run().get("attempt", 0))
    kept = run.path / "replaced" / f"until-attempt-{attempt}"
    if not kept.exists():  # a kill in the middle: what is kept already is the old
        work = kept.with_name(f".{kept.name}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for name in files:
            if (run.path / name).exists():
                shutil.copy2(run.path / name, work / name)
                fsync_path(work / name)
        work.rename(kept)
        fsync_path(kept.parent)
    for name, text in files.items():
        write_atomic(run.path / name, text)
    run.update_run(world_size=relaid.plan.gpus)
    return str(kept.relative_to(run.path))
