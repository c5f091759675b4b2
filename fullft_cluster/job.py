"""The noun Job: a Plan with everything that rendering needs. Pure: made from nouns, knows no cluster and no clock."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fullft_cluster.attempt_time import (
    DEFAULT_SECONDS,
    MOST_SECONDS,
    Attempt,
    attempt_time,
    requeues,
    slurm_time,
    too_short,
)
from fullft_cluster.config import Config
from fullft_cluster.config_load import Resolved, to_yaml
from fullft_cluster.environment import environment_problems
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster
from fullft_cluster.kubernetes_job import KubernetesJob, kubernetes_job
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.quoting import check_name, check_text
from fullft_cluster.units import slurm_time_seconds

if TYPE_CHECKING:  # planning without an inventory does not wait for it
    from fullft_cluster.inventory import Site


class SlurmJob(Frozen, frozen=True):
    """Values of the ``#SBATCH`` lines, by sbatch's names; None or False leaves the line out."""

    time: str
    gpus_per_node: str | None
    cpus_per_task: int
    mem: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None
    exclusive: bool


class Job(Frozen, frozen=True):
    """What is rendered and submitted."""

    name: str
    run_dir: str
    """Absolute path."""
    backend: str
    plan: Plan
    config_yaml: str
    """config.yaml, byte for byte."""
    python: str
    """Absolute path of the interpreter on the compute nodes."""
    env: dict[str, str]
    setup: tuple[str, ...]
    """Shell lines of the cluster profile, as its author wrote them."""
    slurm: SlurmJob | None
    kubernetes: KubernetesJob | None = None


PREPARE_SECONDS = 4 * 3600
"""Time limit of the data preparation job where none is given. Default."""

HOST_MARGIN = 1.1
"""Of ``--mem`` over the estimate: clusters that enforce it kill a job that takes a page more."""

_GRES = re.compile(r"(?:[A-Za-z0-9._-]+:)?[1-9][0-9]*")
_MEM = re.compile(r"[0-9]+[KMGT]?")


def make_job(resolved: Resolved, plan: Plan, run_dir: Path, python: str, site: Site | None = None) -> Job:
    """Make the job of a plan; ``site``: where it is laid, if that was chosen from an inventory.

    Raises UsageError for values that cannot stand in a script or that the site does not allow.
    """
    config, cluster = resolved.config, resolved.cluster
    for value, where in ((str(run_dir), "output.runs_dir"), (python, "python")):
        check_text(value, where)
    if problems := list(_environment_problems(cluster)):
        raise UsageError(problems)
    return Job(
        name=check_name(run_dir.name),
        run_dir=str(run_dir),
        backend=str(config.backend),
        plan=plan,
        config_yaml=to_yaml(resolved, planned_values(config, plan)),
        python=cluster.python or python,
        env=dict(sorted(cluster.env.items())),
        setup=cluster.setup,
        slurm=_slurm_job(config, cluster, plan, site) if config.backend == "slurm" else None,
        kubernetes=kubernetes_job(config, cluster, plan, run_dir, _host_memory_gib(plan))
        if config.backend == "kubernetes"
        else None,
    )


def planned_values(config: Config, plan: Plan) -> dict[str, Any]:
    """Return what the plan chose for values that the configuration leaves open, by dotted key."""
    planned = {
        f"{section}.{name}": getattr(plan, name)
        for section in ("train", "resources")
        for name, value in msgspec.to_builtins(getattr(config, section)).items()
        if value is None and getattr(plan, name, None) is not None
    }
    evaluated = config.data.validation is not None or config.data.validation_fraction > 0
    if evaluated and config.train.eval_steps is None:
        planned["train.eval_steps"] = config.output.save_steps
    return planned


def slurm_attempt(config: Config, plan: Plan, site: Site | None) -> Attempt:
    """Return the time limit of one attempt, how many there will be, and why: as given, else from the forecast.

    A limit is known of a site alone; without one, a day is asked for at most. Raises UsageError for a time that is
    none, or that the site does not allow.
    """
    given, hours, lead = config.slurm.time, plan.time.hours, plan.signal_lead_seconds
    if problems := list(_time_problems(config, plan, site)):
        raise UsageError(problems)
    if given is None:
        limit, whose = _limit(site)
        return attempt_time(hours, lead, limit, whose=whose)
    if hours is None:
        return Attempt(str(given), 1, f"--time={given}, as given")
    attempts, sentence = requeues(hours, lead, slurm_time_seconds(str(given)))
    return Attempt(str(given), attempts, f"--time={given}, as given: {sentence}")


def prepare_time(config: Config, site: Site | None) -> str:
    """Return the time limit of the data preparation job."""
    if config.slurm.prepare_time is not None:
        return config.slurm.prepare_time
    limit, _ = _limit(site) if site and _prepared_there(config) else (None, "")
    return slurm_time(min(PREPARE_SECONDS, limit if limit is not None else PREPARE_SECONDS))


def _limit(site: Site | None) -> tuple[int | None, str]:
    """Return the most that an attempt may be given, in seconds, and what sets it."""
    if site is None or not site.limit_known:
        return DEFAULT_SECONDS, "a day, as no limit is known"
    partition = f"partition {site.partition}" if site.partition else "the default partition"
    return site.time_limit_seconds, f"the limit of {partition}"


def _slurm_job(config: Config, cluster: Cluster, plan: Plan, site: Site | None) -> SlurmJob:
    slurm = config.slurm
    problems = [*_time_problems(config, plan, site), *_slurm_problems(config)]
    if problems:
        raise UsageError(problems)
    share = plan.gpus_per_node / cluster.gpus_per_node
    return SlurmJob(
        time=slurm_attempt(config, plan, site).time,
        gpus_per_node=slurm.gpus_per_node or _gres(cluster, plan),
        cpus_per_task=slurm.cpus_per_task or max(1, math.floor(cluster.cpus_per_node * min(1.0, share))),
        mem=slurm.mem or f"{_host_memory_gib(plan)}G",
        partition=slurm.partition or (site.partition if site else None),
        account=slurm.account,
        qos=slurm.qos,
        constraint=slurm.constraint or (site.constraint if site else None),
        reservation=slurm.reservation,
        exclude=slurm.exclude,
        exclusive=slurm.exclusive,
    )


def _gres(cluster: Cluster, plan: Plan) -> str | None:
    """Return what to ask of ``--gpus-per-node``; None on a cluster of CPUs, whose partitions have no GPUs to give."""
    if cluster.slurm_gpu_type:
        return f"{cluster.slurm_gpu_type}:{plan.gpus_per_node}"
    return None if cluster.gpu == CPU else str(plan.gpus_per_node)


def _host_memory_gib(plan: Plan) -> int:
    """Return what is asked of a node, in GiB: the plan's estimate and a tenth for what it leaves out, if there is."""
    memory = plan.memory
    return math.ceil(min(HOST_MARGIN * memory.host_gib_per_node, memory.host_capacity_gib_per_node))


def _environment_problems(cluster: Cluster) -> list[Problem]:
    """Return what is wrong with a profile's environment."""
    advice = "Take it out and `export {name}=...` in your shell: sbatch hands your environment to the job."
    return list(environment_problems(cluster.env, f"cluster profile {cluster.name}: env", advice))


def _time_problems(config: Config, plan: Plan, site: Site | None) -> Iterator[Problem]:
    """Yield what is wrong with the time limits before SLURM is asked."""
    slurm, lead = config.slurm, plan.signal_lead_seconds
    limit, whose = _limit(site)
    if slurm.time is None and limit is not None and (problem := too_short(limit, lead, whose)):
        yield problem
    for key in ("time", "prepare_time"):
        value = getattr(slurm, key)
        if value is None:
            continue
        try:
            seconds = slurm_time_seconds(value)
        except ValueError as error:
            what = str(error) if len(value) <= 40 else "is not a SLURM time"
            yield Problem(f"slurm.{key}", what, "Write D-HH:MM:SS or HH:MM:SS.")
            continue
        if seconds > MOST_SECONDS:
            yield Problem(f"slurm.{key}", f"{value} is more than ten years", "Write D-HH:MM:SS or HH:MM:SS.")
        elif site and limit is not None and seconds > limit and (key == "time" or _prepared_there(config)):
            fix = f"Write at most {slurm_time(limit)}, or choose another partition."
            what = f"{value} is longer than {slurm_time(limit)}, {whose}"
            yield Problem(f"slurm.{key}", what, fix)
        if key == "time" and seconds <= lead:
            what = f"{value} is not longer than the {lead} s that a step and a checkpoint take before the end"
            yield Problem("slurm.time", what, f"Write at least {_hms(2 * lead + 60)}.")


def _prepared_there(config: Config) -> bool:
    """Return whether the preparation goes to the partition of the training; else it goes to the default one."""
    return config.slurm.partition is not None and config.slurm.prepare_partition is None


def _slurm_problems(config: Config) -> list[Problem]:
    """Return what is wrong with the other options of sbatch before SLURM is asked."""
    slurm = config.slurm
    found = []
    for key, pattern, example in (
        ("gpus_per_node", _GRES, "a100:8"),
        ("mem", _MEM, "900G"),
        ("prepare_mem", _MEM, "32G"),
    ):
        value = getattr(slurm, key)
        if value is not None and not pattern.fullmatch(value):
            found.append(
                Problem(f"slurm.{key}", f"{value!r} is not what sbatch takes", f"Write for example {example}.")
            )
    for key in ("partition", "account", "qos", "constraint", "reservation", "exclude", "prepare_partition"):
        value = getattr(slurm, key)
        try:
            if value is not None:
                check_text(value, f"slurm.{key}")
        except UsageError as error:
            found += error.problems
    return found


def _hms(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def summary(plan: Plan) -> dict[str, Any]:
    """Return the numbers of a plan that the header of a script shows."""
    return {
        "model": plan.model.name,
        "parameters": plan.model.parameters,
        "gpus": plan.gpus,
        "gpu": plan.gpu,
        "global_batch_size": plan.global_batch_size,
        "expected_gib": round(plan.memory.gpu.expected_gib, 1),
        "capacity_gib": round(plan.memory.gpu.capacity_gib, 1),
        "each": "process" if plan.gpu == CPU else "GPU",
    }
