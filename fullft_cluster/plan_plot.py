"""The geometry of the Pareto plot: the options as points, GPUs x hours. Numbers and words; a template draws them.

Lengths are in the units of an SVG's viewBox, about pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fullft_cluster.plan import Frozen, Option, Plan
from fullft_cluster.plan_chart import Tick, ticks
from fullft_cluster.plan_words import count, figure, noun, option_words, verdict

LEFT, RIGHT, TOP, BOTTOM = 80, 880, 30, 320
"""Of the axes."""
RADIUS = 12


class Point(Frozen, frozen=True):
    """One option in the plot."""

    number: int
    x: float
    y: float
    kind: str
    """``chosen``, ``front``, ``other`` or ``lacks`` (does not fit)."""
    title: str
    label: str
    label_x: float
    label_y: float


class Plot(Frozen, frozen=True):
    """GPUs x hours, on a logarithmic and a linear axis."""

    points: tuple[Point, ...]
    front: str
    """The Pareto front as the points of an SVG polyline."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_unit: str
    y_unit: str
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM
    width: float = RIGHT + 40
    height: float = BOTTOM + 60
    radius: float = RADIUS


def pareto_plot(plan: Plan) -> Plot | None:
    """Return the options as points, numbered as in the table; None where there is nothing to compare."""
    shown = [(number, option) for number, option in enumerate(plan.options, 1) if math.isfinite(option.hours)]
    if len(shown) < 2:
        return None
    gpus = sorted({option.gpus for _, option in shown})
    top = max(option.hours for _, option in shown) * 1.1 or 1.0

    def x_of(number: int) -> float:
        span = math.log2(gpus[-1] / gpus[0])
        share = math.log2(number / gpus[0]) / span if span else 0.5
        return LEFT + 60 + share * (RIGHT - LEFT - 120)

    def y_of(hours: float) -> float:
        return BOTTOM - hours / top * (BOTTOM - TOP)

    wanted = [(x_of(option.gpus), y_of(option.hours)) for _, option in shown]
    places = side_by_side(wanted)
    points: list[Point] = []
    for (number, option), place in zip(shown, places, strict=True):
        label = f"{figure(option.gpu_hours)} {noun(plan.gpu)}-h" if option.pareto or option.chosen else ""
        at = _label_place(label, place, places, points)
        title = f"{number}: {option_words(option, plan)}" + (f" ({verdict(option)})" if verdict(option) else "")
        points.append(
            Point(number=number, x=_round(place[0]), y=_round(place[1]), kind=_kind(option), title=title, label=label,
                  label_x=_round(at[0]), label_y=_round(at[1]))
        )  # fmt: skip
    front = sorted((p.x, p.y) for p, (_, option) in zip(points, shown, strict=True) if option.pareto and option.fits)
    thin = gpus if len(gpus) <= 12 else [*gpus[:: -(-len(gpus) // 12)]]
    return Plot(
        points=tuple(points), front=" ".join(f"{x},{y}" for x, y in front),
        x_ticks=tuple(Tick(at=_round(x_of(number)), text=f"{number:,}") for number in thin),
        y_ticks=tuple(Tick(at=_round(y_of(hours)), text=f"{hours:g}") for hours in ticks(top)),
        x_unit=count(2, noun(plan.gpu))[2:], y_unit="hours" if plan.time.hours else "hours of a billion tokens",
    )  # fmt: skip


def _round(length: float) -> float:
    return round(length, 1)


def _kind(option: Option) -> str:
    if not option.fits:
        return "lacks"
    return "chosen" if option.chosen else "front" if option.pareto else "other"


def side_by_side(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the places with those moved to the right that would hide an earlier point."""
    placed: list[tuple[float, float]] = []
    for place in places:
        x, y = place
        while any(math.dist((x, y), other) < 2 * RADIUS + 2 for other in placed):
            x += RADIUS
        placed.append((x, y))
    return placed


def _label_place(
    label: str, place: tuple[float, float], points: Sequence[tuple[float, float]], before: Sequence[Point]
) -> tuple[float, float]:
    """Return the middle of the baseline of a point's label: above, below, right or left, where it hides the least."""
    half = 3.6 * len(label)
    x, y = place
    around = [(x, y - RADIUS - 9), (x, y + RADIUS + 19), (x + RADIUS + 9 + half, y + 4), (x - RADIUS - 9 - half, y + 4)]

    def hidden(at: tuple[float, float]) -> int:
        over = sum(abs(at[0] - px) < half + RADIUS and abs(at[1] - 4 - py) < RADIUS + 10 for px, py in points)
        return over + sum(
            bool(p.label) and abs(at[0] - p.label_x) < half + 3.6 * len(p.label) and abs(at[1] - p.label_y) < 13
            for p in before
        )

    return min(around, key=hidden)
