"""Lays the planner's answers beside published ones: numbers alone; the sections of the page make text of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks import fit
from benchmarks.competitors import TOOLS
from benchmarks.rows import MemoryRow, SpeedRow, VerdictRow
from fullft_cluster.hardware import load_gpu
from fullft_cluster.planner import memory, speed, storage
from fullft_cluster.planner.setup import Setup
from fullft_cluster.planner.sharding import FP32, shard
from fullft_cluster.units import GIB

MOMENTS = 2 * FP32
"""Bytes a parameter of AdamW's two moments."""

AFTER_FIRST_STEP = ("optimizer_step", "save", "resume")


@dataclass(frozen=True)
class MemoryResult:
    """A measured peak beside ours and the other tools', in GiB."""

    row: MemoryRow
    ours: float
    low: float
    high: float
    phase: str
    others: dict[str, float]

    @property
    def error(self) -> float:
        """Return our relative error; positive = too much."""
        return self.ours / self.row.peak_gib - 1

    @property
    def inside(self) -> bool:
        """Return whether the measurement lies between the low and the high end, to the digit that is published."""
        return round(self.low, 1) <= self.row.peak_gib <= round(self.high, 1)

    def error_of(self, tool: str) -> float:
        """Return another tool's relative error."""
        return self.others[tool] / self.row.peak_gib - 1


def memory_result(row: MemoryRow) -> MemoryResult:
    """Return what the planner says of a row: the peak of torch's allocator, as the table reports it.

    For a row that was read before the first optimizer step under ZeRO-1 or 2, Adam's moments and the step are left out.
    """
    phases = memory.phases(row.setup)
    missing = 0
    if row.before_first_step:
        phases = {name: parts for name, parts in phases.items() if name not in AFTER_FIRST_STEP}
        missing = MOMENTS * shard(row.setup)
    inside = {
        name: {part: size for part, size in parts.items() if part not in memory.OUTSIDE}
        for name, parts in phases.items()
    }
    name = max(inside, key=lambda phase: sum(inside[phase].values()))
    low, expected, high = ((size - missing) / GIB for size in memory.interval(inside[name]))
    others = {tool.name: tool.gpu_bytes(row.case) / GIB for tool in TOOLS}
    return MemoryResult(row, expected, low, high, name, others)


def at_rest_gib(setup: Setup) -> float:
    """Return what is allocated between two steps, in GiB: the phase that adds nothing to what stays."""
    return memory.allocated(memory.phases(setup)["save"]) / GIB


Answer = Literal["fits", "tight", "refused"]


@dataclass(frozen=True)
class Verdict:
    """Whether the planner lets a run start, and what it needs: a GPU's and a node's peaks, in GiB."""

    row: VerdictRow
    gpu_gib: tuple[float, float]
    """Expected, and the high end."""
    gpu_capacity_gib: float
    host_gib: float
    host_capacity_gib: float

    @property
    def answer(self) -> Answer:
        """Return ``fits``: it chooses this by itself; ``tight``: only where GPUs and micro-batch are given."""
        expected, high = self.gpu_gib
        if expected > self.gpu_capacity_gib or self.host_gib > self.host_capacity_gib:
            return "refused"
        return "fits" if high <= self.gpu_capacity_gib else "tight"

    @property
    def right(self) -> bool:
        """Return whether what ran is not refused, and what ran out is not chosen."""
        return self.answer != "refused" if self.row.fits else self.answer != "fits"


def gpu_gib(setup: Setup) -> tuple[float, float]:
    """Return a GPU's peak with what lies outside of torch's blocks, in GiB: expected, and the high end."""
    _, expected, high = zip(*(memory.interval(parts) for parts in memory.phases(setup).values()), strict=True)
    return max(expected) / GIB, max(high) / GIB


def host_gib(setup: Setup) -> float:
    """Return a node's expected peak of host memory in GiB, of a run that loads and trains: none was published that
    resumed."""
    return max(sum(parts.values()) for name, parts in storage.host_phases(setup).items() if name != "resume") / GIB


def verdict(row: VerdictRow) -> Verdict:
    """Return the planner's verdict on a run as it was made."""
    capacity = row.host_gb * 1e9 / GIB if row.host_gb else row.cluster.host_memory_gib
    return Verdict(row, gpu_gib(row.setup), load_gpu(row.setup.gpu).memory_gib, host_gib(row.setup), capacity)


def minimum_gpus(setup: Setup, nodes: int = 16) -> int | None:
    """Return the fewest GPUs on which a run is not refused: 1 to 8 of a node, then whole nodes of 8; None = more."""
    capacity = load_gpu(setup.gpu).memory_gib
    for gpus in (*range(1, 8), *range(8, 8 * nodes + 1, 8)):
        if gpu_gib(replace(setup, gpus=gpus, nodes=-(-gpus // 8)))[0] <= capacity:
            return gpus
    return None


@dataclass(frozen=True)
class SpeedResult:
    """A measured throughput beside the forecast, in tokens a second and GPU."""

    row: SpeedRow
    ours: float
    low: float
    high: float
    left_out_error: float | None = None

    @property
    def error(self) -> float:
        """Return the relative error; positive = it promises too much."""
        return self.ours / self.row.tokens_per_second_per_gpu - 1

    @property
    def inside(self) -> bool:
        """Return whether the measurement lies in the interval."""
        return self.low <= self.row.tokens_per_second_per_gpu <= self.high


def speed_result(row: SpeedRow, left_out_error: float | None = None) -> SpeedResult:
    """Return the forecast with its interval: step seconds over and under by the spread."""
    ours, wide = fit.tokens_per_second_per_gpu(row), 1 + speed.spread(row.setup, fit.step_parts(row))
    return SpeedResult(row, ours, ours / wide, ours * wide, left_out_error)


def fitted_results() -> list[SpeedResult]:
    """Return the rows that constants were fitted to, each with its error under constants fitted without it."""
    data = fit.rows()
    return [speed_result(row, error) for row, error in zip(data, fit.leave_one_out(data), strict=True)]


def mean(values: list[float]) -> float:
    """Return the mean of the absolute values."""
    return sum(abs(value) for value in values) / len(values)
