"""The choice: the fewest GPUs that fit, with the largest micro-batch that fits; or why nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from fullft_cluster.config import Config, ResourcesConfig
from fullft_cluster.deepspeed_json import zero_optimization
from fullft_cluster.errors import DoesNotFitError, Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster, Gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.planner.batch import Batch, default_global_batch, indivisible, splits
from fullft_cluster.planner.layout import Layout, candidates, count, noun
from fullft_cluster.planner.memory import Setup, peak
from fullft_cluster.planner.storage import host_parts
from fullft_cluster.units import GIB, in_gib


@dataclass(frozen=True)
class Task:
    """What is to be planned, and on what."""

    config: Config
    model: ModelSpec
    cluster: Cluster
    gpu: Gpu

    @property
    def wanted(self) -> ResourcesConfig:
        """Return the user's words on execution."""
        return self.config.resources

    @property
    def activation_checkpointing(self) -> bool:
        """Return whether activations are recomputed: as the user says; else on, but for CPUs, whose memory is cheap."""
        given = self.wanted.activation_checkpointing
        return given if given is not None else self.cluster.gpu != CPU

    def changed(self, **changes: object) -> Task:
        """Return the task with other resources."""
        resources = msgspec.structs.replace(self.wanted, **changes)
        config = msgspec.structs.replace(self.config, resources=resources)
        return Task(config, self.model, self.cluster, self.gpu)


@dataclass(frozen=True)
class Choice:
    """One way to run it, with what it takes; amounts in bytes."""

    layout: Layout
    batch: Batch
    global_batch: int
    setup: Setup
    phase: str
    """The phase of the peak."""
    gpu_parts: dict[str, int]
    gpu_capacity: int
    host: dict[str, int]
    host_capacity: int

    @property
    def gpu_bytes(self) -> int:
        """Return the peak of one GPU."""
        return sum(self.gpu_parts.values())

    @property
    def host_bytes(self) -> int:
        """Return the peak of one node."""
        return sum(self.host.values())

    @property
    def fits(self) -> bool:
        """Return whether both fit."""
        return self.gpu_bytes <= self.gpu_capacity and self.host_bytes <= self.host_capacity

    def shortfall(self) -> str:
        """Return in words what is short by how much."""
        needs = []
        for needed, there, each in (
            (self.gpu_bytes, self.gpu_capacity, f"a {noun(self.setup.gpu)}"),
            (self.host_bytes, self.host_capacity, "of host memory a node"),
        ):
            if needed > there:
                short = f"{in_gib((needed - there) / GIB)} short"
                needs.append(f"{in_gib(needed / GIB)} {each} where there are {there / GIB:.1f} ({short})")
        return f"needs {' and '.join(needs)} on {self.layout.on(self.setup.gpu)} of {self.setup.gpu}"


def evaluate(task: Task, layout: Layout, batch: Batch) -> Choice:
    """Return what one layout and batch take."""
    config, wanted, cluster = task.config, task.wanted, task.cluster
    setup = Setup(
        model=task.model,
        gpu=cluster.gpu,
        gpus=layout.gpus,
        micro_batch_size=batch.micro,
        seq_len=config.train.seq_len,
        activation_checkpointing=task.activation_checkpointing,
        precision=config.train.precision,
        offload=wanted.offload,
        zero=zero_optimization(task.model.hidden_size, cluster.gpu, wanted.offload),
    )
    phase, parts = peak(setup)
    memory_gib = task.gpu.memory_gib or cluster.host_memory_gib / layout.gpus_per_node
    return Choice(
        layout=layout,
        batch=batch,
        global_batch=batch.micro * batch.accumulation * layout.gpus,
        setup=setup,
        phase=phase,
        gpu_parts=parts,
        gpu_capacity=int(memory_gib * GIB),
        host=host_parts(setup, layout.nodes),
        host_capacity=int(cluster.host_memory_gib * GIB),
    )


def global_batch(task: Task, layout: Layout) -> int:
    """Return the user's global batch, or the default for this layout."""
    given = task.config.train.global_batch_size
    return given or default_global_batch(layout.gpus * (task.wanted.micro_batch_size or 1))


def most_tokens(gpu: str) -> int:
    """Return the most tokens of a micro-batch that the plan chooses by itself.

    Gathering a layer costs the same for any number of tokens, so more at once is faster, until computing hides it;
    beyond, a larger micro-batch only comes nearer to the limit of the memory. Defaults; a user may ask for more.
    """
    return 4096 if gpu == CPU else 16384


def on_layout(task: Task, layout: Layout) -> Iterator[Choice]:
    """Yield the choices on a layout, the largest micro-batch first; none where the batch does not divide."""
    most = max(most_tokens(task.cluster.gpu) // task.config.train.seq_len, 1)
    for batch in splits(global_batch(task, layout), layout.gpus, task.wanted.micro_batch_size, most):
        yield evaluate(task, layout, batch)


def first_fit(task: Task) -> Choice | None:
    """Return the choice with the fewest GPUs that fits, or None. Raises UsageError for contradictory constraints."""
    fitting = (choice for layout in candidates(task.wanted, task.cluster) for choice in on_layout(task, layout))
    return next((choice for choice in fitting if choice.fits), None)


def choose(task: Task) -> Choice:
    """Return the plan's choice. Raises UsageError (contradictions, an indivisible batch) and DoesNotFitError."""
    choice = first_fit(task)
    if choice:
        return choice
    layouts = candidates(task.wanted, task.cluster)
    smallest = [evaluate(task, layout, Batch(task.wanted.micro_batch_size or 1, 1)) for layout in layouts]
    would_fit = next((choice for choice in smallest if choice.fits), None)
    given = task.config.train.global_batch_size
    if would_fit and given:
        workers = count(would_fit.layout.gpus, noun(task.cluster.gpu))
        problem = indivisible(given, would_fit.layout.gpus, task.wanted.micro_batch_size, workers)
        if problem:
            raise UsageError(problem)
    raise DoesNotFitError(_does_not_fit(task, smallest[-1]))


def _does_not_fit(task: Task, tried: Choice) -> Problem:
    """Say what is short on the most GPUs that were allowed, and which plans would fit."""
    free = {"gpus": None, "nodes": None, "gpus_per_node": None, "max_gpus": None}
    fixes = [text for text in _alternatives(task, free) if text]
    what = f"{task.model.name} {tried.shortfall()}"
    return Problem("", what, " ".join(fixes) or f"No plan fits {task.cluster.name}, with or without offload.")


def _alternatives(task: Task, free: dict[str, None]) -> Iterator[str]:
    """Yield the nearest plans that fit, each a sentence."""
    if task.wanted.micro_batch_size:
        yield _sentence(task.changed(micro_batch_size=None), "a micro-batch of the plan's own choice")
    if not task.activation_checkpointing:
        recomputing, how = task.changed(activation_checkpointing=True), "resources.activation_checkpointing: true"
        yield _sentence(recomputing, how) or _sentence(recomputing.changed(**free), how)
    larger = first_fit(task.changed(**free))
    if larger:
        yield f"Nearest plan that fits: {larger.layout.on(task.cluster.gpu)}."
    if task.wanted.offload == "none" and task.cluster.gpu != CPU:
        offloaded = task.changed(offload="optimizer")
        within = _sentence(offloaded, "resources.offload: optimizer")
        yield within or ("" if larger else _sentence(offloaded.changed(**free), "resources.offload: optimizer"))


def _sentence(task: Task, how: str) -> str:
    choice = first_fit(task)
    return f"With {how} it fits on {choice.layout.on(task.cluster.gpu)}." if choice else ""
