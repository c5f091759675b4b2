"""The noun Measured: how much slower than the forecast a run really was, and what the next forecast makes of it.

`calibrate` writes them into a small file beside the cluster profile (measured.py); here they replace the prior.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Engine, Frozen, Offload
from fullft_cluster.planner import speed
from fullft_cluster.planner.setup import Setup

Factor = Annotated[float, Meta(gt=0, le=1000)]

WARM_UP = 3
"""Lines of metrics at the start of an attempt that are left out: the first steps compile, allocate and trace."""
LEAST = 5
"""Fewer lines say too little."""
LEAST_SPREAD = 0.05
"""Runs of the same job differ by this much; a short series of steps may look steadier than that."""
OTHER_MODEL_SPREAD = 0.10
"""More of it for another model or number of nodes than the measured one: the forecast's shape is then trusted."""


class Measured(Frozen, frozen=True, kw_only=True):
    """Speed of a run on this cluster against what was forecast for it."""

    engine: Engine
    gpu: str
    offload: Offload
    nodes: Annotated[int, Meta(ge=1)]
    model: str
    slowdown: Factor
    """Seconds of a measured step / seconds of the step that the uncalibrated forecast expects."""
    spread: Annotated[float, Meta(ge=0, le=10)]
    """Relative half-width of the interval that holds nine of ten measured steps."""
    steps: Annotated[int, Meta(ge=1)]
    """Lines of metrics behind it."""
    run: str
    date: str


def nearest(setup: Setup, measured: Sequence[Measured]) -> Measured | None:
    """Return what was measured of the same engine, GPU and offload: of as many nodes if there is, else the newest."""
    same = [m for m in measured if (m.engine, m.gpu, m.offload) == (setup.engine, setup.gpu, setup.offload)]
    return max(same, key=lambda m: (m.nodes == setup.nodes, m.model == setup.model.name, m.date), default=None)


def factor(setup: Setup, measured: Sequence[Measured]) -> float:
    """Return what the prior's seconds are to be multiplied with."""
    found = nearest(setup, measured)
    return found.slowdown if found else 1.0


def spread(setup: Setup, measured: Sequence[Measured], parts: Mapping[str, float]) -> float:
    """Return the relative half-width of the interval around a step of these parts, in seconds by cause."""
    found = nearest(setup, measured)
    if not found:
        return speed.spread(setup, parts)
    near = found.nodes == setup.nodes and found.model == setup.model.name
    return math.hypot(max(found.spread, LEAST_SPREAD), 0.0 if near else OTHER_MODEL_SPREAD)


def basis(setup: Setup, measured: Sequence[Measured]) -> str:
    """Return in words what a forecast rests on."""
    found = nearest(setup, measured)
    if found:
        return (
            f"{found.steps} steps of run {found.run}, measured on this cluster ({found.model} on {found.nodes} "
            f"node{'s' if found.nodes > 1 else ''}, {found.date}), which took {found.slowdown:.2f} x what was forecast"
        )
    if setup.gpu == CPU:
        return "a default for CPUs (configs/gpus.yaml); `calibrate RUN` replaces it after the first steps"
    return "a prior from published runs on A100s (docs/backtest.md); `calibrate RUN` replaces it after the first steps"


def summarise(seconds: Sequence[float], forecast: float) -> tuple[float, float]:
    """Return slowdown and spread of measured seconds a step against a forecast; the median, so that stalls do not
    count.

    Raises UsageError where there are fewer than LEAST of them.
    """
    if len(seconds) < LEAST:
        what = f"has {len(seconds)} measured steps after the first {WARM_UP} of each attempt; {LEAST} are needed"
        raise UsageError(Problem("metrics.jsonl", what, "Calibrate when the run has gone on for a while."))
    middle = statistics.median(seconds)
    ordered = sorted(abs(value / middle - 1) for value in seconds)
    return middle / forecast, ordered[math.ceil(0.9 * len(ordered)) - 1]
