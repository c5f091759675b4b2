"""The one road: sources -> Config -> Plan -> Job -> Rendered. Each command goes as far as it needs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.config_load import Resolved
from fullft_cluster.config_paths import absolute, is_elsewhere
from fullft_cluster.data_sets import look_for_data_sets
from fullft_cluster.errors import DoesNotFitError, FullftError, Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster, load_gpu
from fullft_cluster.hub import fetch_config
from fullft_cluster.inventory import Inventory, Site, sites
from fullft_cluster.job import Job, make_job, prepare_time, slurm_attempt
from fullft_cluster.kubernetes_check import kubernetes_problems
from fullft_cluster.kubernetes_job import kubernetes_notes
from fullft_cluster.measured import load_measured
from fullft_cluster.model import ModelSpec, load_model
from fullft_cluster.plan import Objective, Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.quoting import check_text
from fullft_cluster.render import Rendered, render
from fullft_cluster.row_scan import RowScan, scan_data
from fullft_cluster.run_choice import choose_run_dir, goes_on, same_config
from fullft_cluster.weights import Weights, check_same_model, check_tokenizer, find_weights, read_template

STAND_IN = "run"
"""The name of a run whose own is refused, so that all else that is wrong is found too."""


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from."""

    resolved: Resolved
    model: ModelSpec
    plan: Plan
    site: Site | None
    """Where it is laid, when it was made for nodes that exist."""
    scan: RowScan | None = None
    """What was found of the data; None where none is named."""

    @property
    def data_notes(self) -> tuple[str, ...]:
        """Return what the rows were taken for, how many there are, and which are passed over."""
        return tuple(self.scan.notes) if self.scan else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the user should know of the nodes, and how long an attempt there will be given."""
        resolved, site = self.resolved, self.site
        notes = list(site.notes) if site else []
        if site is None and "cluster" not in resolved.origins and resolved.config.backend != "local":
            assumed = resolved.cluster.name
            notes.append(f"cluster {assumed} is assumed; name yours by --cluster, or nodes by --inventory")
        if resolved.config.backend in (None, "slurm") and self.plan.gpu != CPU and (site is None or site.partition):
            notes.append(slurm_attempt(resolved.config, self.plan, site).sentence)
        return tuple(notes)

    def told(self) -> Planned:
        """Return the same with the notes among the plan's sentences, for those who read the plan alone."""
        sentences = (f"{note[:1].upper()}{note[1:]}".rstrip(".") + "." for note in self.notes)
        return dataclasses.replace(self, plan=msgspec.structs.replace(self.plan, why=(*self.plan.why, *sentences)))


@dataclass(frozen=True)
class Ready:
    """A job, its bytes, and what the user should know before it is queued."""

    job: Job
    rendered: Rendered
    run_dir: Path
    notes: tuple[str, ...]


def to_plan(resolved: Resolved, inventory: Inventory | None = None) -> Planned:
    """Plan a configuration: read the model's shape, scan the data. Raises UsageError and DoesNotFitError.

    With an inventory the plan is laid on nodes that exist: on the site where the objective is met best, the first of
    equal ones.
    """
    config = resolved.config
    _check_texts(config)
    if config.model is None:
        fix = "Write --model 7b (13b, 30b, 65b, tiny, small), a path to a config.json, or a hub id."
        raise UsageError(Problem("model", "is missing", fix))
    model = load_model(config.model, fetch_config)
    scan = None
    if config.data.train is not None or config.data.sources:
        scan = scan_data(config.data, lambda path: is_elsewhere(config, path))
    data = Data(rows=scan.rows, text_bytes=scan.text_bytes) if scan else Data()
    measured = load_measured(config.cluster or resolved.cluster.name)
    if inventory is None:
        return Planned(resolved, model, make_plan(config, model, resolved.cluster, data, measured), None, scan).told()
    chosen = resolved.origins.get("cluster") is not None
    found: list[tuple[Plan, Site]] = []
    refused: list[tuple[float, int, FullftError]] = []
    for site in sites(inventory, resolved.cluster, config, chosen=chosen):
        try:
            found.append((make_plan(config, model, site.cluster, data, measured), site))
        except (UsageError, DoesNotFitError) as error:
            whole = site.cluster.max_nodes * site.cluster.gpus_per_node * (load_gpu(site.cluster.gpu).memory_gib or 0)
            refused.append((whole, -len(refused), error))  # told of is where most memory is, the first of equal ones
    if not found:
        raise max(refused, key=lambda one: one[:2])[2]
    plan, site = min(found, key=lambda one: _rank(one[0], config.resources.objective))
    return Planned(dataclasses.replace(resolved, cluster=site.cluster), model, plan, site, scan).told()


def _rank(plan: Plan, objective: Objective) -> tuple[bool, float]:
    """Return what the best of several plans has least of; offload is a last resort here too."""
    seconds = plan.time.step_seconds.expected / plan.global_batch_size
    least = {"fewest-gpus": float(plan.gpus), "least-cost": plan.gpus * seconds, "fastest": seconds}
    return plan.offload != "none", least[objective]


def to_job(
    resolved: Resolved,
    environ: Mapping[str, str],
    inventory: Inventory | None = None,
    *,
    weights_must_exist: bool,
    taken: Container[str] = (),
) -> Ready:
    """Go on to the rendered job, collecting every problem on the way before raising.

    Weights that cannot be found are a note instead of an error unless `weights_must_exist` (a dry run may be made
    where they are not), and only then is the hub asked: what leads to no submit needs no network. Weights at hand that
    are of another model are always an error. ``taken``: names that runs in the cluster have.
    """
    _check_texts(resolved.config)
    resolved = absolute(resolved)
    config = resolved.config
    problems = list(_not_to_submit(config))
    run_dir = None
    try:
        run_dir = choose_run_dir(config, taken)
    except UsageError as error:
        problems += error.problems
    try:
        planned = to_plan(resolved, inventory)
    except UsageError as error:
        raise UsageError([*problems, *error.problems, *_of_the_section(config, resolved.cluster)]) from None
    weights, said, wrong = _weights(planned, environ, must_exist=weights_must_exist)
    problems += wrong
    found, wrong = look_for_data_sets(config, environ, must_exist=weights_must_exist)
    said += found
    problems += wrong
    place = run_dir or Path(config.output.runs_dir) / STAND_IN
    final = _final(planned, weights, place.name)
    try:
        job = make_job(final, planned.plan, place, sys.executable, planned.site)
    except UsageError as error:
        raise UsageError([*problems, *error.problems]) from None
    if problems or run_dir is None:
        raise UsageError(problems)
    job = msgspec.structs.replace(job, config_yaml=same_config(run_dir, job.config_yaml))
    rendered = render(job)
    if job.kubernetes is not None:
        said += kubernetes_notes(final.config, final.cluster, job.plan.nodes)
        said += goes_on(run_dir, rendered.files)
    return Ready(job, rendered, run_dir, (*planned.data_notes, *planned.notes, *said))


def _final(planned: Planned, weights: Weights, name: str) -> Resolved:
    """Return the configuration that the job carries: with what was found and chosen."""
    config = planned.resolved.config
    model = _model_for_nodes(str(config.model), weights)
    limit = prepare_time(config, planned.site)
    return planned.resolved.changed(model=model, weights=weights.ref, name=name, slurm__prepare_time=limit)


def _of_the_section(config: Config, cluster: Cluster) -> list[Problem]:
    """Return what is wrong with the section of the backend, where there is no plan to make a job of."""
    if config.backend != "kubernetes":
        return []
    runs_dir = Path(config.output.runs_dir)
    mount_path = config.kubernetes.mount_path or str(runs_dir)
    return list(kubernetes_problems(config.kubernetes, cluster, runs_dir / STAND_IN, mount_path))


def _not_to_submit(config: Config) -> Iterator[Problem]:
    """Yield what a plan may be without, and a job may not."""
    if config.data.train is None and not config.data.sources:
        yield Problem("data.train", "is missing", "Write --data train.jsonl.")
    if config.data.validation and config.data.validation_fraction:
        yield Problem("data.validation_fraction", "is set beside data.validation", "Keep one of them.")
    if config.data.streaming and config.train.max_steps is None:
        yield Problem("train.max_steps", "is missing, and data.streaming needs it", "Write --max-steps N.")
    if config.data.validation is None and not config.data.validation_fraction:
        fix = "Give data.validation or data.validation_fraction, or leave it out."
        for name in ("eval_steps", "early_stopping_patience"):
            if getattr(config.train, name) is not None:
                yield Problem(f"train.{name}", "needs a validation set, and there is none", fix)


def _weights(
    planned: Planned, environ: Mapping[str, str], *, must_exist: bool
) -> tuple[Weights, list[str], list[Problem]]:
    """Return where the weights are, what the user should know of them and their tokenizer, and what is wrong."""
    config = planned.resolved.config
    notes: list[str] = []
    problems: list[Problem] = []
    ref = config.weights or planned.model.weights
    weights = Weights(ref=str(ref), kind="hub")

    def unseen(path: str | None, error: UsageError, *, on_hub: bool) -> None:
        secret = on_hub and config.kubernetes.hf_token_secret
        if config.backend == "kubernetes" and (secret or is_elsewhere(config, str(path))):
            notes.extend(f"not seen from here, so the pods have to: {problem}" for problem in error.problems)
        elif must_exist:
            problems.extend(error.problems)
        else:
            notes.extend(f"a submit from here would be refused: {problem}" for problem in error.problems)

    try:
        if template := config.data.chat_template:
            read_template(template)
    except UsageError as error:
        unseen(template, error, on_hub=False)
    try:
        notes += filter(None, [check_tokenizer(config.tokenizer, environ)])
    except UsageError as error:
        unseen(config.tokenizer, error, on_hub=True)
    try:
        weights = find_weights(ref, config.tokenizer or planned.model.tokenizer, environ, ask_hub=must_exist)
        notes += [f"weights {weights.ref}: {weights.note}"] if weights.note else []
    except UsageError as error:
        unseen(ref, error, on_hub=True)
    try:
        check_same_model(weights, planned.model)
    except UsageError as error:
        problems += error.problems
    return weights, notes, problems


def _model_for_nodes(model: str, weights: Weights) -> str:
    """Return what the nodes know a model by: the directory of its weights where its shape was fetched from the hub."""
    if weights.kind != "path":
        return model
    try:
        load_model(model)
    except UsageError:
        return weights.ref
    return model


def _check_texts(config: Config) -> None:
    """Raise UsageError for text that no file of a job can hold: control characters, and bytes that are not UTF-8.

    A path is bytes; Python keeps those that are no text as surrogates, which cannot be written
    (https://peps.python.org/pep-0383/). The name has rules of its own.
    """
    problems: list[Problem] = []
    for key, value in _texts(msgspec.to_builtins(config)):
        if not _is_utf8(value):
            problems.append(Problem(key, f"{value!r} is not text in UTF-8", "Rename it, or make a link to it."))
        elif key != "name":
            try:
                check_text(value, key)
            except UsageError as error:
                problems += error.problems
    if problems:
        raise UsageError(problems)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of a configuration by dotted key: `data.train`, `data.sources[0].path`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{key}[{number}]")
