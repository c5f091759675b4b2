"""The comparison: the choice beside the Pareto front of GPUs x hours x GPU-hours and the next smaller plan."""

from __future__ import annotations

from collections.abc import Sequence

from fullft_cluster.plan import Option
from fullft_cluster.planner.search import fastest, first_fit, front, layouts, least, offloads
from fullft_cluster.planner.task import Choice, Task
from fullft_cluster.units import GIB


def compare(task: Task, chosen: Choice) -> tuple[Option, ...]:
    """Return the options, the fewest GPUs first: what fits with more GPUs, with offload on fewer, and what does not.

    The user's constraints on GPUs are left aside, but for the maximum: the point is to see what they cost.
    """
    free = task.changed(gpus=None, nodes=None, gpus_per_node=None, deadline=None)
    same = free.with_global_batch(chosen.global_batch)  # else it would be no alternative
    smallest = first_fit(same, [chosen.variant.offload]) or chosen
    found = [chosen, *(choice for choice in front(same, smallest) if choice.layout != chosen.layout)]
    if chosen.variant.offload != "none" and "none" in offloads(free):
        found = _without_offload(same, chosen, found)
    if chosen.variant.offload == "none" and "optimizer" in offloads(free):
        fewer = [layout for layout in layouts(same) if layout.gpus < smallest.layout.gpus]
        found += [option for layout in fewer[-2:] if (option := fastest(same, layout, "optimizer"))]
    best = pareto([_costs(choice) for choice in found])
    options = [
        _option(choice, front=on_front, chosen=choice is chosen) for choice, on_front in zip(found, best, strict=True)
    ]
    lacking = next_smaller(free, smallest)
    if lacking:
        options.append(_option(lacking, front=False, chosen=False, note=lacking.shortfall()))
    return tuple(sorted(options, key=lambda option: (option.gpus, option.fits, option.hours)))


def _without_offload(same: Task, chosen: Choice, found: list[Choice]) -> list[Choice]:
    """Return what fits without offload beside what was found with it, less what that makes pointless."""
    plain = first_fit(same, ["none"])
    found = [*found, *(front(same, plain) if plain else [])]
    best = pareto([_costs(choice) for choice in found])
    return [choice for choice, on_front in zip(found, best, strict=True) if on_front or choice is chosen]


def next_smaller(task: Task, smallest: Choice) -> Choice | None:
    """Return what the next smaller layout would need at least; None where there is no smaller one."""
    fewer = [layout for layout in layouts(task) if layout.gpus < smallest.layout.gpus]
    if not fewer:
        return None
    lacking = least(task, max(fewer, key=lambda layout: layout.gpus), smallest.variant.offload)
    return None if lacking.fits else lacking


def pareto(costs: Sequence[tuple[float, ...]]) -> list[bool]:
    """Return for each point whether no other is at least as low in everything and lower in something."""
    return [
        not any(all(b <= a for a, b in zip(point, other, strict=True)) and other != point for other in costs)
        for point in costs
    ]


def _costs(choice: Choice) -> tuple[float, ...]:
    hours = choice.hours.expected
    return (choice.layout.gpus, hours, hours * choice.layout.gpus)


def _option(choice: Choice, *, front: bool, chosen: bool, note: str = "") -> Option:
    task, variant = choice.task, choice.variant
    hours = choice.hours.expected
    price = task.price_per_gpu_hour
    return Option(
        nodes=choice.layout.nodes,
        gpus=choice.layout.gpus,
        gpus_per_node=choice.layout.gpus_per_node,
        micro_batch_size=choice.batch.micro,
        gradient_accumulation_steps=choice.batch.accumulation,
        activation_checkpointing=variant.activation_checkpointing,
        zero_stage=variant.zero_stage,
        hpz=choice.setup.hpz > 1,
        offload=variant.offload,
        gpu_gib=choice.gpu_bytes[1] / GIB,
        fits=choice.fits,
        step_seconds=choice.step.expected,
        hours=hours,
        gpu_hours=hours * choice.layout.gpus,
        cost=hours * choice.layout.gpus * price if price else None,
        pareto=front and choice.fits,
        chosen=chosen,
        note=note,
    )
