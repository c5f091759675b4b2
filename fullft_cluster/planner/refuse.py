"""The words of a refusal: what is short by how much, and the nearest plans that fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import msgspec

from fullft_cluster.errors import DoesNotFitError, Problem, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan_words import count, noun
from fullft_cluster.planner.batch import indivisible
from fullft_cluster.planner.layout import candidates
from fullft_cluster.planner.search import able, fastest, first_fit, front, least, offloads
from fullft_cluster.planner.task import Choice, Task
from fullft_cluster.units import GB, duration, in_gb


def high_seconds(choice: Choice) -> float:
    """Return the seconds that nine of ten runs stay below."""
    return choice.hours.high * 3600


def too_slow(task: Task, smallest: Choice, limit: float) -> Problem:
    """Say how fast it can be at most within the constraints, and with how many GPUs the deadline would hold."""
    best = min(front(task, smallest), key=high_seconds)
    gpu = task.cluster.gpu
    what = (
        f"{task.model.name} takes up to {duration(high_seconds(best))} on {best.layout.on(gpu)}, the fastest plan "
        f"within the constraints, and the deadline is {duration(limit)}"
    )
    fixes = [f"Write --deadline {_rounded_up(high_seconds(best))}."]
    if task.wanted.max_gpus or task.wanted.gpus or task.wanted.nodes:
        free = task.changed(gpus=None, nodes=None, gpus_per_node=None, max_gpus=None)
        wider = first_fit(free)
        in_time = [c for c in front(free, wider) if high_seconds(c) <= limit] if wider else []
        if in_time:
            least = min(in_time, key=lambda choice: choice.layout.gpus)
            fixes.append(f"Or {least.layout.on(gpu)}: up to {duration(high_seconds(least))}.")
    return Problem("resources.deadline", what, " ".join(fixes))


def _rounded_up(seconds: float) -> str:
    return f"{int(seconds // 3600) + 1}h" if seconds >= 3600 else f"{int(seconds // 60) + 1}m"


def refusal(task: Task) -> UsageError | DoesNotFitError:
    """Return the error of a task that nothing fits: a batch that does not divide, or too little memory."""
    offload = offloads(task)[0]
    found = candidates(task.wanted, task.cluster)
    tried = (least(task, layout, offload) for layout in able(task, found, offload))
    would_fit = next((choice for choice in tried if choice.fits), None)
    given = task.config.train.global_batch_size
    if would_fit and given:
        workers = count(would_fit.layout.gpus, noun(task.cluster.gpu))
        problem = indivisible(given, would_fit.layout.gpus, task.wanted.micro_batch_size, workers)
        if problem:
            return UsageError(problem)
    return DoesNotFitError(_does_not_fit(task, least(task, found[-1], offload)))


def _does_not_fit(task: Task, tried: Choice) -> Problem:
    """Say what is short on the most GPUs that were allowed, and which plans would fit."""
    fixes = [text for text in _alternatives(task) if text]
    what = f"{task.model.name} {tried.shortfall()}"
    fix = " ".join(fixes) or _without_all(task) or " ".join(text for text in _beyond(task, tried) if text)
    return Problem("", what, fix or f"No plan fits {task.cluster.name}, with or without offload.")


FREE = {"gpus": None, "nodes": None, "gpus_per_node": None, "max_gpus": None}
DEFAULTS = {"micro_batch_size": None, "zero_stage": None, "activation_checkpointing": None, "offload": None}


def unconstrained(task: Task) -> Task:
    """Return the task without any of the user's words on resources."""
    return task.changed(**FREE, **DEFAULTS, hpz=None)


def _without_all(task: Task) -> str:
    """Return the nearest plan without any of the constraints, the global batch last; nothing where there is none."""
    kept = [f"resources.{key}" for key in DEFAULTS if getattr(task.wanted, key) is not None]
    kept += ["resources.hpz"] if task.wanted.hpz else []
    alone = unconstrained(task)
    choice = first_fit(alone)
    if choice:
        return f"Nearest plan that fits, without {' and '.join(kept)}: {_laid(choice)}."
    given = task.config.train.global_batch_size
    for offload, layout in product(offloads(alone), candidates(alone.wanted, task.cluster) if given else []):
        batch = max(round((given or 1) / layout.gpus), 1) * layout.gpus
        choice = fastest(alone.with_global_batch(batch), layout, offload)
        if choice:
            without = f", without {' and '.join(kept)}" if kept else ""
            return f"Nearest plan that fits{without}: {_laid(choice)}, with train.global_batch_size: {batch}."
    return ""


def _laid(choice: Choice) -> str:
    """Return a layout in words, and what it moves to the host."""
    moved = f" with resources.offload: {choice.variant.offload}" if choice.variant.offload != "none" else ""
    return f"{choice.layout.on(choice.setup.gpu)}{moved}"


def _alternatives(task: Task) -> Iterator[str]:
    """Yield the nearest plans that fit, each a sentence."""
    if task.wanted.micro_batch_size:
        yield _sentence(task.changed(micro_batch_size=None), "a micro-batch of the plan's own choice")
    if task.wanted.zero_stage in (1, 2):
        yield _sentence(task.changed(zero_stage=3), "ZeRO-3")
    if task.wanted.activation_checkpointing is False:
        recomputing, how = task.changed(activation_checkpointing=True), "resources.activation_checkpointing: true"
        yield _sentence(recomputing, how) or _sentence(recomputing.changed(**FREE), how)
    larger = first_fit(task.changed(**FREE))
    if larger:
        yield f"Nearest plan that fits: {_laid(larger)}."
    if task.wanted.offload == "none" and task.cluster.gpu != CPU:
        offloaded = task.changed(offload="optimizer")
        within = _sentence(offloaded, "resources.offload: optimizer")
        yield within or ("" if larger else _sentence(offloaded.changed(**FREE), "resources.offload: optimizer"))


def _sentence(task: Task, how: str) -> str:
    choice = first_fit(task)
    return f"With {how} it fits on {_laid(choice)}." if choice else ""


SHORTEST = 512
"""Shorter sequences than this are not proposed: hardly anybody wants to learn from them."""

MORE_NODES = (2, 4, 8, 16, 64)
"""So many times the cluster's nodes are tried, to say how many it would take."""


def _beyond(task: Task, tried: Choice) -> Iterator[str]:
    """Yield what would have to change beyond the resources: the disk, the sequence, the cluster."""
    free = task.cluster.filesystem_free_gb
    if free is not None and tried.disk_bytes > free * GB:
        yield _less_disk(task, tried)
    if not tried.memory_fits:
        yield _shorter(unconstrained(task))
        yield _more_nodes(unconstrained(task))


def _less_disk(task: Task, tried: Choice) -> str:
    output = task.config.output
    for kept in range(output.save_total_limit - 1, 0, -1):
        fewer = task.with_output(msgspec.structs.replace(output, save_total_limit=kept))
        if choice := first_fit(fewer):
            return f"With output.save_total_limit: {kept} it fits on {_laid(choice)}."
    return f"Free {in_gb(tried.disk_bytes / GB - (task.cluster.filesystem_free_gb or 0))} more, or use another disk."


def _shorter(task: Task) -> str:
    """Say which half, quarter, ... of the sequence fits: the longest, found by halving, as shorter ones need less."""
    lengths = [task.config.train.seq_len >> power for power in range(1, 24)]
    lengths = [seq_len for seq_len in lengths if seq_len >= SHORTEST]
    first = bisect_left(lengths, True, key=lambda seq_len: first_fit(task.with_seq_len(seq_len)) is not None)
    choice = first_fit(task.with_seq_len(lengths[first])) if first < len(lengths) else None
    return f"With train.seq_len: {lengths[first]} it fits on {_laid(choice)}." if choice else ""


def _more_nodes(task: Task) -> str:
    for times in MORE_NODES:
        cluster = msgspec.structs.replace(task.cluster, max_nodes=times * task.cluster.max_nodes)
        if choice := first_fit(replace(task, cluster=cluster)):
            return f"It would fit on {_laid(choice)}, but {task.cluster.name} has {task.cluster.max_nodes} nodes."
    return ""
