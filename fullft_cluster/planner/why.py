"""The sentences of a plan: why this many GPUs, why recomputation or offload, what is tight, what was assumed."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_cluster.hardware import CPU
from fullft_cluster.plan_words import count, noun
from fullft_cluster.planner import activations, calibration, kernels, speed
from fullft_cluster.planner.batch import DEFAULT_GLOBAL_BATCH
from fullft_cluster.planner.layout import Layout, candidates
from fullft_cluster.planner.options import next_smaller
from fullft_cluster.planner.search import deadline_seconds, fastest, first_fit, most_tokens
from fullft_cluster.planner.task import Choice, Data, Task
from fullft_cluster.units import GIB, duration, in_gib


def why(task: Task, choice: Choice, data: Data) -> tuple[str, ...]:
    """Return the sentences of the plan."""
    return (
        *_gpus(task, choice),
        *_memory(choice),
        *_offload(task, choice),
        *_batch(task, choice),
        *kernels.why(choice.setup),
        *_time(task, choice, data),
    )


def _gpus(task: Task, choice: Choice) -> Iterator[str]:
    gpu, wanted = task.cluster.gpu, task.wanted
    _, expected, high = (size / GIB for size in choice.gpu_bytes)
    yield (
        f"{choice.layout.on(gpu)}: {in_gib(expected)} (at most {in_gib(high)}) of {choice.gpu_capacity / GIB:.1f} a "
        f"{noun(gpu)} at the peak, which is in the phase '{choice.phase.replace('_', ' ')}'; loading, saving and "
        "resuming fit too."
    )
    if gpu == CPU:
        yield "On CPUs all processes of a node are taken: fewer would save nothing."
        return
    free = task.changed(gpus=None, nodes=None, gpus_per_node=wanted.gpus_per_node, max_gpus=None, deadline=None)
    fewest = first_fit(free, [choice.variant.offload])
    if fewest and fewest.layout.gpus < choice.layout.gpus:
        if wanted.gpus or wanted.nodes:
            yield f"So many were asked for; {fewest.layout.on(gpu)} would do."
        elif wanted.deadline or wanted.objective != "fewest-gpus":
            aims = [f"the objective '{wanted.objective}'"] if wanted.objective != "fewest-gpus" else []
            aims += [f"the deadline of {wanted.deadline}"] if wanted.deadline else []
            takes = duration(fewest.hours.high * 3600) if choice.steps else ""
            but = f", but take up to {takes}" if takes else ""
            yield f"They were chosen for {' and '.join(aims)}; {fewest.layout.on(gpu)} would fit{but}."
    elif (lacking := next_smaller(free, choice)) is not None:
        uneven = _uneven(free, choice, lacking)
        shared = f" and share the global batch of {choice.global_batch} evenly" if uneven else ""
        yield f"They are the fewest that fit{shared}: the next smaller layout {lacking.shortfall()}."
        if uneven:
            yield f"{uneven.on(gpu)} would fit too: give a global batch that divides by {uneven.gpus}."


def _uneven(task: Task, choice: Choice, lacking: Choice) -> Layout | None:
    """Return the fewest GPUs between the two that would do, were it not for the global batch; None if there are
    none."""
    between = (x for x in candidates(task.wanted, task.cluster) if lacking.layout.gpus < x.gpus < choice.layout.gpus)
    return next((layout for layout in between if fastest(task, layout, choice.variant.offload)), None)


def _memory(choice: Choice) -> Iterator[str]:
    setup, variant = choice.setup, choice.variant
    full, checkpoints = activations.all_layers(setup) / GIB, activations.checkpoints(setup) / GIB
    if variant.activation_checkpointing:
        yield (
            f"Activations are recomputed: they take {in_gib(checkpoints)} where all of them would take {in_gib(full)}, "
            "for about a quarter more compute."
        )
    elif setup.gpu != CPU:
        yield f"Activations are kept ({in_gib(full)}), as they fit: recomputing them would cost a quarter more compute."
    if variant.zero_stage < 3:
        yield (
            f"ZeRO-{variant.zero_stage}: every GPU keeps the parameters whole, because they fit and nothing has to be "
            "gathered."
        )
    reserve = choice.gpu_capacity - choice.gpu_bytes[2]
    if reserve < 0 and setup.gpu != CPU:
        yield (
            f"Tight: at the high end of the forecast {in_gib(-reserve / GIB)} a GPU are missing; a smaller micro-batch "
            "or more GPUs leave room."
        )


def _offload(task: Task, choice: Choice) -> Iterator[str]:
    setup = choice.setup
    if setup.offload == "none" or setup.gpu == CPU:
        return
    what = "The optimizer works" if setup.offload == "optimizer" else "The optimizer works and the parameters live"
    size = in_gib(choice.host_phases["forward"]["offloaded"] / GIB, 0)
    yield f"{what} in host memory ({size} a node): fewer GPUs, slower steps."
    if task.wanted.offload is None:
        yield "Nothing fits within these constraints without that."


def _batch(task: Task, choice: Choice) -> Iterator[str]:
    train, one = task.config.train, noun(task.cluster.gpu)
    if not task.wanted.micro_batch_size:
        yield (
            f"A micro-batch of {choice.batch.micro} is the largest divisor of a {one}'s share that fits, up to "
            f"{most_tokens(task.cluster.gpu)} tokens at once."
        )
    if train.global_batch_size is None and choice.global_batch != DEFAULT_GLOBAL_BATCH:
        unit = f"{count(choice.layout.gpus, one)}"
        unit += f" x micro-batch {task.wanted.micro_batch_size}" if task.wanted.micro_batch_size else ""
        yield (
            f"The default global batch of {DEFAULT_GLOBAL_BATCH} does not divide by {unit}, so it is "
            f"{choice.global_batch}; give train.global_batch_size to fix it whatever the GPUs."
        )
    if train.precision == "fp32" and task.cluster.gpu != CPU:
        yield "fp32 is meant for exact tests: the forecast of time assumes bf16's speed."


def _time(task: Task, choice: Choice, data: Data) -> Iterator[str]:
    if task.tokens is not None and task.tokens < choice.tokens_per_step:
        yield (
            f"The data is less than one global batch: about {task.tokens:,} tokens in all passes, where a step takes "
            f"{choice.tokens_per_step:,}."
        )
    if task.config.train.epochs is None and data.rows is None:
        yield "The data's rows are not known, so epochs is the default for small sets, 3."
    if task.cluster.gpu == CPU:
        return
    basis = calibration.basis(choice.setup, task.measured)
    yield f"A step: {speed.describe(choice.step_parts)}. The forecast rests on {basis}."
    limit = deadline_seconds(task)
    if limit is not None:
        ends = duration(choice.hours.high * 3600)
        yield f"Nine of ten such runs end within {ends}, and the deadline is {duration(limit)}."
