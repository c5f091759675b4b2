"""The choice among all layouts, micro-batches, recomputation, offload and sharding; or why nothing fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import product

from fullft_cluster.errors import DoesNotFitError, Problem, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Offload, ZeroStage
from fullft_cluster.plan_words import count, noun
from fullft_cluster.planner.batch import DEFAULT_GLOBAL_BATCH, Batch, default_global_batch, indivisible, splits
from fullft_cluster.planner.evaluate import evaluate
from fullft_cluster.planner.layout import Layout, candidates
from fullft_cluster.planner.task import Choice, Task, Variant
from fullft_cluster.units import duration, duration_seconds

USUAL_MOST_GPUS = 32
"""Where neither GPUs nor a maximum are asked for, plans of more are looked at only if nothing smaller serves."""

LONGEST_DEADLINE_SECONDS = 10 * 365 * 86400
"""Ten years: a deadline beyond is a slip of the keyboard."""

WITHOUT_END = 1e9
"""Tokens that hours are told for while the length of the run is not known."""


def variants(task: Task, offload: Offload) -> list[Variant]:
    """Return the ways to cut the work that the user's words leave, for one kind of offload.

    ZeRO-3 is what needs least, and what is used unless speed or cost is the aim: then ZeRO-2 is looked at too, which
    gathers nothing. On CPUs memory is cheap and a small model is to take the road of a large one: ZeRO-3, nothing
    recomputed.
    """
    wanted, on_cpu = task.wanted, task.cluster.gpu == CPU
    recompute = [False, True] if wanted.activation_checkpointing is None else [wanted.activation_checkpointing]
    if on_cpu and wanted.activation_checkpointing is None:
        recompute = [False]
    for_speed = wanted.objective != "fewest-gpus" or wanted.deadline is not None
    bound = on_cpu or wanted.engine == "fsdp" or wanted.hpz or offload != "none"
    stages: list[ZeroStage] = [wanted.zero_stage] if wanted.zero_stage else [3, 2] if for_speed and not bound else [3]
    return [Variant(again, offload, stage, wanted.hpz) for stage, again in product(stages, recompute)]


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


def batches(task: Task, layout: Layout) -> list[Batch]:
    """Return the splits of the global batch on a layout, the largest micro-batch first; none if it does not divide."""
    most = max(most_tokens(task.cluster.gpu) // task.config.train.seq_len, 1)
    return list(splits(global_batch(task, layout), layout.gpus, task.wanted.micro_batch_size, most))


def fitting(task: Task, layout: Layout, offload: Offload) -> Iterator[Choice]:
    """Yield for each variant the choice with the largest micro-batch that fits on this layout."""
    for variant in variants(task, offload):
        tried = (evaluate(task, layout, batch, variant) for batch in batches(task, layout))
        found = next((choice for choice in tried if choice.fits), None)
        if found:
            yield found


def fastest(task: Task, layout: Layout, offload: Offload) -> Choice | None:
    """Return the fastest choice that fits on this layout."""
    return min(fitting(task, layout, offload), key=lambda choice: choice.step.expected, default=None)


def layouts(task: Task) -> list[Layout]:
    """Return the layouts to choose among, the fewest GPUs first: those that the global batch divides by, if any do.

    The default batch stays the same for all of them, so what is learnt does not depend on how many GPUs there are.
    """
    found = candidates(task.wanted, task.cluster)
    return [layout for layout in found if _even(task, layout)] or found


def _even(task: Task, layout: Layout) -> bool:
    unit = layout.gpus * (task.wanted.micro_batch_size or 1)
    return (task.config.train.global_batch_size or DEFAULT_GLOBAL_BATCH) % unit == 0


def offloads(task: Task) -> list[Offload]:
    """Return the kinds of offload to try, in this order: what the user says, else none, and more only where it must."""
    if task.wanted.offload is not None:
        return [task.wanted.offload]
    if task.cluster.gpu == CPU or task.wanted.engine == "fsdp":
        return ["none"]
    return ["none", "optimizer", "parameters"] if task.wanted.zero_stage in (None, 3) else ["none", "optimizer"]


def first_fit(task: Task, kinds: list[Offload] | None = None) -> Choice | None:
    """Return the choice with the fewest GPUs that fits, the fastest one on them; None where nothing fits.

    Layouts that the default global batch does not divide by come last, with a batch of their own.
    """
    even = layouts(task)
    odd = sorted(set(candidates(task.wanted, task.cluster)) - set(even), key=lambda layout: layout.gpus)
    for offload in kinds or offloads(task):
        for layout in [*_able(task, even, offload), *_able(task, odd, offload)]:
            if found := fastest(task, layout, offload):
                return found
    return None


def _able(task: Task, found: list[Layout], offload: Offload) -> list[Layout]:
    """Return layouts, the fewest GPUs first, without whole nodes that even the smallest micro-batch does not fit.

    More nodes never need more memory each, so where it begins to fit is found by halving: there may be 10,000 of them.
    """
    several = [layout for layout in found if layout.nodes > 1]
    first = bisect_left(several, True, key=lambda layout: least(task, layout, offload).fits)
    return [layout for layout in found if layout.nodes == 1] + several[first:]


def choose(task: Task) -> Choice:
    """Return the plan's choice. Raises UsageError (contradictions, an indivisible batch) and DoesNotFitError."""
    smallest = first_fit(task)
    if smallest is None:
        raise _refusal(task)
    limit = deadline_seconds(task)
    if task.wanted.objective == "fewest-gpus" and limit is None:
        return smallest
    known = [choice for choice in front(task, smallest) if limit is None or _seconds(choice) <= limit]
    if not known:
        raise DoesNotFitError(_too_slow(task, smallest, limit or 0.0))
    if task.wanted.objective == "fewest-gpus":
        return min(known, key=lambda choice: (choice.layout.gpus, choice.step.expected))
    if task.wanted.objective == "fastest":
        return min(known, key=lambda choice: choice.step.expected / choice.tokens_per_step)
    return min(known, key=lambda choice: choice.layout.gpus * choice.step.expected / choice.tokens_per_step)


def front(task: Task, smallest: Choice) -> list[Choice]:
    """Return the smallest choice, and the fastest one of each larger layout that fits: what can be chosen among.

    All have the smallest one's global batch: a plan that learns something else is no alternative.
    """
    task = task.with_global_batch(smallest.global_batch)
    most = max(smallest.layout.gpus, USUAL_MOST_GPUS if task.wanted.max_gpus is None else task.wanted.max_gpus)
    if deadline_seconds(task) is not None and task.wanted.max_gpus is None:
        most = task.cluster.max_nodes * task.cluster.gpus_per_node
    offload = smallest.variant.offload
    larger = [x for x in layouts(task) if smallest.layout.gpus < x.gpus <= most and _even(task, x)]
    looked_at = _thinned([smallest.layout, *larger])[1:]
    return [smallest, *(found for layout in looked_at if (found := fastest(task, layout, offload)))]


def _thinned(found: list[Layout]) -> list[Layout]:
    """Return at most two layouts for each doubling of GPUs: between 512 and 520 GPUs nobody wants to choose."""
    kept: list[Layout] = []
    for layout in sorted(found, key=lambda one: one.gpus):
        if len(kept) < 2 or layout.gpus >= 1.4 * kept[-1].gpus:
            kept.append(layout)
    return kept


def deadline_seconds(task: Task) -> float | None:
    """Return the seconds within which the run has to end. Raises UsageError for what is no duration."""
    if task.wanted.deadline is None:
        return None
    try:
        seconds = duration_seconds(task.wanted.deadline)
    except ValueError as error:
        raise UsageError(Problem("resources.deadline", str(error), "Write 24h, 90m, 3d or 1-12:00:00.")) from None
    if not 0 < seconds <= LONGEST_DEADLINE_SECONDS:
        what = "is no time at all" if seconds <= 0 else f"{task.wanted.deadline!r} is more than ten years"
        raise UsageError(Problem("resources.deadline", what, "Write 24h, 90m, 3d or 1-12:00:00."))
    if task.tokens is None and task.config.train.max_steps is None:
        what = "cannot be kept or missed while the length of the run is not known"
        raise UsageError(Problem("resources.deadline", what, "Give --data, or --max-steps."))
    return seconds


def _seconds(choice: Choice) -> float:
    """Return the seconds that nine of ten runs stay below."""
    return choice.hours(WITHOUT_END).high * 3600


def _too_slow(task: Task, smallest: Choice, limit: float) -> Problem:
    """Say how fast it can be at most within the constraints, and with how many GPUs the deadline would hold."""
    best = min(front(task, smallest), key=_seconds)
    gpu = task.cluster.gpu
    what = (
        f"{task.model.name} takes up to {duration(_seconds(best))} on {best.layout.on(gpu)}, the fastest plan within "
        f"the constraints, and the deadline is {duration(limit)}"
    )
    fixes = [f"Write --deadline {_rounded_up(_seconds(best))}."]
    if task.wanted.max_gpus or task.wanted.gpus or task.wanted.nodes:
        free = task.changed(gpus=None, nodes=None, gpus_per_node=None, max_gpus=None)
        wider = first_fit(free)
        in_time = [c for c in front(free, wider) if _seconds(c) <= limit] if wider else []
        if in_time:
            least = min(in_time, key=lambda choice: choice.layout.gpus)
            fixes.append(f"Or {least.layout.on(gpu)}: up to {duration(_seconds(least))}.")
    return Problem("resources.deadline", what, " ".join(fixes))


def _rounded_up(seconds: float) -> str:
    return f"{int(seconds // 3600) + 1}h" if seconds >= 3600 else f"{int(seconds // 60) + 1}m"


# --- refusals


def least(task: Task, layout: Layout, offload: Offload) -> Choice:
    """Return the choice on a layout that needs least: micro-batch 1, all recomputed, all sharded, as far as allowed."""
    micro = task.wanted.micro_batch_size or 1
    batch = Batch(micro, max(global_batch(task, layout) // (layout.gpus * micro), 1))
    tried = [evaluate(task, layout, batch, variant) for variant in variants(task, offload)]
    return min(tried, key=lambda choice: choice.needed_gpu_bytes)


def _refusal(task: Task) -> UsageError | DoesNotFitError:
    """Return the error of a task that nothing fits: a batch that does not divide, or too little memory."""
    offload = offloads(task)[0]
    found = candidates(task.wanted, task.cluster)
    tried = (least(task, layout, offload) for layout in _able(task, found, offload))
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
    free = {"gpus": None, "nodes": None, "gpus_per_node": None, "max_gpus": None}
    fixes = [text for text in _alternatives(task, free) if text]
    what = f"{task.model.name} {tried.shortfall()}"
    fix = " ".join(fixes) or _without_all(task, free) or f"No plan fits {task.cluster.name}, with or without offload."
    return Problem("", what, fix)


def _without_all(task: Task, free: dict[str, None]) -> str:
    """Return the nearest plan without any of the constraints, the global batch last; nothing where there is none."""
    defaults = {"micro_batch_size": None, "zero_stage": None, "activation_checkpointing": None, "offload": None}
    kept = [f"resources.{key}" for key in defaults if getattr(task.wanted, key) is not None]
    kept += ["resources.hpz"] if task.wanted.hpz else []
    alone = task.changed(**free, **defaults, hpz=False)
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


def _alternatives(task: Task, free: dict[str, None]) -> Iterator[str]:
    """Yield the nearest plans that fit, each a sentence."""
    if task.wanted.micro_batch_size:
        yield _sentence(task.changed(micro_batch_size=None), "a micro-batch of the plan's own choice")
    if task.wanted.zero_stage in (1, 2):
        yield _sentence(task.changed(zero_stage=3), "ZeRO-3")
    if task.wanted.activation_checkpointing is False:
        recomputing, how = task.changed(activation_checkpointing=True), "resources.activation_checkpointing: true"
        yield _sentence(recomputing, how) or _sentence(recomputing.changed(**free), how)
    larger = first_fit(task.changed(**free))
    if larger:
        yield f"Nearest plan that fits: {_laid(larger)}."
    if task.wanted.offload == "none" and task.cluster.gpu != CPU:
        offloaded = task.changed(offload="optimizer")
        within = _sentence(offloaded, "resources.offload: optimizer")
        yield within or ("" if larger else _sentence(offloaded.changed(**free), "resources.offload: optimizer"))


def _sentence(task: Task, how: str) -> str:
    choice = first_fit(task)
    return f"With {how} it fits on {_laid(choice)}." if choice else ""
