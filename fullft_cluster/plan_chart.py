"""The geometry of stacked bars: memory by phase, time by cause. Numbers and words; a template draws them.

Lengths are in the units of an SVG's viewBox, about pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fullft_cluster.plan import Frozen, Interval, Peaks, Plan
from fullft_cluster.plan_words import (
    gib_range,
    keys,
    seconds,
    seconds_range,
)
from fullft_cluster.plan_words import words as in_words
from fullft_cluster.units import in_gib

COLOURS = 16
"""How many the page's style sheet has for parts; a seventeenth part has the first one's colour, and its own letter."""
WIDTH = 920
BAR_LEFT, BAR_RIGHT, ROW, BAR_TOP = 120, 700, 40, 30
LETTER_WIDTH = 14
"""A narrower segment bears no letter."""
THIN_WIDTH = 3


class Tick(Frozen, frozen=True):
    """A mark of an axis."""

    at: float
    text: str


class Segment(Frozen, frozen=True):
    """One part of a bar."""

    x: float
    width: float
    colour: int
    key: str
    lettered: bool
    thin: bool
    """Too thin for the gap between segments."""
    title: str


class Row(Frozen, frozen=True):
    """One bar, with the interval of its length below."""

    y: float
    label: str
    value: str
    strong: bool
    segments: tuple[Segment, ...]
    low_x: float
    high_x: float
    title: str


class Bars(Frozen, frozen=True):
    """Stacked bars on one scale, and the line that they may not pass."""

    height: float
    axis_y: float
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    unit: str
    limit: Tick | None
    left: float = BAR_LEFT
    right: float = BAR_RIGHT
    top: float = BAR_TOP
    width: float = WIDTH


class Stack(Frozen, frozen=True):
    """What a bar shows."""

    label: str
    parts: dict[str, float]
    whole: Interval
    value: str
    strong: bool = False


class Part(Frozen, frozen=True):
    """One line of a legend: the letter, the colour and what it is in each bar."""

    key: str
    colour: int
    label: str
    values: tuple[str, ...]


def ticks(most: float, wanted: int = 5) -> list[float]:
    """Return about ``wanted`` round numbers from 0 up to ``most``: multiples of 1, 2 or 5 times a power of ten."""
    if not 1e-12 < most < math.inf:
        return [0.0]
    rough = most / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.floor(most / step * (1 + 1e-9)) + 1)]


def memory_bars(peaks: Peaks) -> Bars:
    """Return a bar a phase against the capacity."""
    stacks = [
        Stack(
            label=in_words(phase.name), parts=phase.parts, whole=phase.gib, value=gib_range(phase.gib),
            strong=phase.name == peaks.peak,
        )
        for phase in peaks.phases
    ]  # fmt: skip
    limit = (peaks.capacity_gib, f"capacity {in_gib(peaks.capacity_gib)}")
    return stacked(stacks, keys(peaks), "GiB", limit)


def step_bars(plan: Plan) -> Bars:
    """Return one bar: the seconds of an optimizer step by cause."""
    time = plan.time
    value = seconds_range(time.step_seconds)
    stack = Stack(label="a step", parts=time.step_parts, whole=time.step_seconds, value=value, strong=True)
    return stacked([stack], step_keys(plan), "s", None)


def step_keys(plan: Plan) -> dict[str, str]:
    """Return a letter for each cause of a step's time."""
    return {part: chr(ord("A") + index % 26) for index, part in enumerate(plan.time.step_parts)}


def stacked(stacks: Sequence[Stack], letters: dict[str, str], unit: str, limit: tuple[float, str] | None) -> Bars:
    """Return bars on one scale, from 0 to the largest of their high ends and the limit (an amount, and its words)."""
    most = max([stack.whole.high for stack in stacks] + [stack.whole.expected for stack in stacks])
    scale = (BAR_RIGHT - BAR_LEFT) / (max(most, limit[0] if limit else 0) or 1)
    bottom = BAR_TOP + ROW * len(stacks)

    def at(amount: float) -> float:
        return round(BAR_LEFT + amount * scale, 1)

    rows = []
    for index, stack in enumerate(stacks):
        low, high = at(stack.whole.low), at(stack.whole.high)
        rows.append(
            Row(
                y=BAR_TOP + ROW * index, label=stack.label, value=stack.value, strong=stack.strong,
                segments=_segments(stack, letters, scale, unit), low_x=low, high_x=high,
                title=f"{stack.label}: {stack.value}",
            )
        )  # fmt: skip
    marks = ticks((BAR_RIGHT - BAR_LEFT) / scale)
    return Bars(
        height=bottom + 40, axis_y=bottom, rows=tuple(rows), unit=unit,
        ticks=tuple(Tick(at=at(mark), text=f"{mark:g}") for mark in marks),
        limit=Tick(at=at(limit[0]), text=limit[1]) if limit else None,
    )  # fmt: skip


def _segments(stack: Stack, letters: dict[str, str], scale: float, unit: str) -> tuple[Segment, ...]:
    """Return the parts of a bar side by side."""
    made, begin, order = [], 0.0, list(letters)
    for part, amount in stack.parts.items():
        width = round(amount * scale, 1)
        size = in_gib(amount, 2) if unit == "GiB" else seconds(amount)
        made.append(
            Segment(
                x=round(BAR_LEFT + begin * scale, 1), width=width, colour=order.index(part) % COLOURS,
                key=letters[part], lettered=width >= LETTER_WIDTH,
                thin=width < THIN_WIDTH,
                title=f"{letters[part]} {in_words(part)}: {size} in {stack.label}",
            )
        )  # fmt: skip
        begin += amount
    return tuple(made)


def memory_legend(peaks: Peaks) -> tuple[Part, ...]:
    """Return each part with its GiB in each phase, a dash where a phase does not have it."""
    return tuple(
        Part(
            key=key, colour=index % COLOURS, label=in_words(part),
            values=tuple(
                in_gib(phase.parts[part], 2).removesuffix(" GiB") if part in phase.parts else "-"
                for phase in peaks.phases
            ),
        )
        for index, (part, key) in enumerate(keys(peaks).items())
    )  # fmt: skip


def step_legend(plan: Plan) -> tuple[Part, ...]:
    """Return each cause of a step's time with its seconds and its share."""
    whole = sum(plan.time.step_parts.values()) or 1.0
    return tuple(
        Part(
            key=key, colour=index % COLOURS, label=in_words(part),
            values=(seconds(plan.time.step_parts[part]), _percent(plan.time.step_parts[part] / whole)),
        )
        for index, (part, key) in enumerate(step_keys(plan).items())
    )  # fmt: skip


def _percent(share: float) -> str:
    """Return ``42 %``; of what is there but rounds to nothing, ``under 1 %``."""
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
