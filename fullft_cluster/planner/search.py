"""What there is to choose from: layouts, micro-batches, recomputation, offload and sharding, and what fits of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import product

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Offload, ZeroStage
from fullft_cluster.planner.batch import DEFAULT_GLOBAL_BATCH, Batch, default_global_batch, splits
from fullft_cluster.planner.evaluate import evaluate
from fullft_cluster.planner.layout import Layout, candidates
from fullft_cluster.planner.task import Choice, Task, Variant
from fullft_cluster.units import duration_seconds

USUAL_MOST_GPUS = 32
"""Where neither GPUs nor a maximum are asked for, plans of more are looked at only if nothing smaller serves."""

LONGEST_DEADLINE_SECONDS = 10 * 365 * 86400
"""Ten years: a deadline beyond is a slip of the keyboard."""


def variants(task: Task, offload: Offload) -> list[Variant]:
    """Return the ways to cut the work that the user's words leave, for one kind of offload.

    ZeRO-3 is what needs least, and what is used unless speed or cost is the aim: then ZeRO-2 is looked at too, which
    gathers nothing, and hpZ, which gathers less between nodes. On CPUs memory is cheap and a small model is to take
    the road of a large one: ZeRO-3, nothing recomputed.
    """
    wanted, on_cpu = task.wanted, task.cluster.gpu == CPU
    recompute = [False, True] if wanted.activation_checkpointing is None else [wanted.activation_checkpointing]
    if on_cpu and wanted.activation_checkpointing is None:
        recompute = [False]
    for_speed = wanted.objective != "fewest-gpus" or wanted.deadline is not None
    bound = on_cpu or wanted.engine == "fsdp" or wanted.hpz or offload != "none"
    stages: list[ZeroStage] = [wanted.zero_stage] if wanted.zero_stage else [3, 2] if for_speed and not bound else [3]
    copies = [False, True] if wanted.hpz is None and for_speed and not bound else [bool(wanted.hpz)]
    return [
        Variant(again, offload, stage, hpz)
        for hpz, stage, again in product(copies, stages, recompute)
        if stage == 3 or not hpz
    ]


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
    return [layout for layout in found if is_even(task, layout)] or found


def is_even(task: Task, layout: Layout) -> bool:
    """Return whether the global batch divides by the layout's GPUs, and by the user's micro-batch on them."""
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
        for layout in [*able(task, even, offload), *able(task, odd, offload)]:
            if found := fastest(task, layout, offload):
                return found
    return None


def able(task: Task, found: list[Layout], offload: Offload) -> list[Layout]:
    """Return layouts, the fewest GPUs first, without whole nodes that even the smallest micro-batch does not fit.

    More nodes never need more memory each, so where it begins to fit is found by halving: there may be 10,000 of them.
    """
    several = [layout for layout in found if layout.nodes > 1]
    first = bisect_left(several, True, key=lambda layout: least(task, layout, offload).fits)
    return [layout for layout in found if layout.nodes == 1] + several[first:]


def front(task: Task, smallest: Choice) -> list[Choice]:
    """Return the smallest choice, and the fastest one of each larger layout that fits: what can be chosen among.

    All have the smallest one's global batch: a plan that learns something else is no alternative.
    """
    task = task.with_global_batch(smallest.global_batch)
    most = max(smallest.layout.gpus, USUAL_MOST_GPUS if task.wanted.max_gpus is None else task.wanted.max_gpus)
    if deadline_seconds(task) is not None and task.wanted.max_gpus is None:
        most = task.cluster.max_nodes * task.cluster.gpus_per_node
    offload = smallest.variant.offload
    larger = [x for x in layouts(task) if smallest.layout.gpus < x.gpus <= most and is_even(task, x)]
    looked_at = larger if deadline_seconds(task) is not None else _thinned(larger)
    return [smallest, *(found for layout in looked_at if (found := fastest(task, layout, offload)))]


def _thinned(found: list[Layout]) -> list[Layout]:
    """Return the usual layouts, and two for each doubling of GPUs beyond: between 512 and 520 nobody wants to
    choose."""
    kept: list[Layout] = []
    for layout in sorted(found, key=lambda one: one.gpus):
        if layout.gpus <= USUAL_MOST_GPUS or not kept or layout.gpus >= 1.4 * kept[-1].gpus:
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


def least(task: Task, layout: Layout, offload: Offload) -> Choice:
    """Return the choice on a layout that needs least: micro-batch 1, all recomputed, all sharded, as far as allowed."""
    micro = task.wanted.micro_batch_size or 1
    batch = Batch(micro, max(global_batch(task, layout) // (layout.gpus * micro), 1))
    tried = [evaluate(task, layout, batch, variant) for variant in variants(task, offload)]
    return min(tried, key=lambda choice: choice.needed_gpu_bytes)
