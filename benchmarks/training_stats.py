"""Figures from raw samples: speeds, ratios within rounds, overhead of neighbouring steps, whether samples differ."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

EXACT = 10_000
"""Arrangements up to which the permutation test is exact; beyond, so many are drawn."""


class Spread(NamedTuple):
    """A median, with the least and the most."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some values and their ends."""
    return Spread(statistics.median(values), min(values), max(values))


def speeds(samples: Sequence[Sequence[float]]) -> list[float]:
    """Return tokens a second of each (seconds, tokens, steps)."""
    return [tokens / seconds for seconds, tokens, _ in samples]


def step_seconds(samples: Sequence[Sequence[float]]) -> list[float]:
    """Return seconds a step of each (seconds, tokens, steps)."""
    return [seconds / steps for seconds, _, steps in samples]


def ratio(ours: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Spread:
    """Return our speed over another's, round by round: each pair was measured within seconds of one another."""
    return spread([mine / theirs for mine, theirs in zip(speeds(ours), speeds(other), strict=True)])


class Overhead(NamedTuple):
    """What our step takes beyond the bare one."""

    share: float
    """Of the bare step; the median over steps."""
    low: float
    high: float
    """Ends of the median's 95 % interval."""
    seconds: float
    """The median difference."""
    bare_seconds: float
    steps: int


def overhead(pairs: Sequence[tuple[float, float]]) -> Overhead:
    """Return the overhead from (ours, bare) seconds of alternating steps.

    Each step of ours lies between two bare ones and is held against their mean, so that a drift of the machine's speed
    falls out. The interval is the distribution-free one of a median, by order statistics (binomial, normal
    approximation): Conover, Practical Nonparametric Statistics, section 3.2.
    """
    between = [(ours, (pairs[i][1] + bare) / 2) for i, (ours, bare) in enumerate(pairs[1:])]
    shares = sorted(ours / bare - 1 for ours, bare in between)
    reach = math.ceil(1.96 * math.sqrt(len(shares)) / 2)
    middle = len(shares) // 2
    return Overhead(
        share=statistics.median(shares), low=shares[max(middle - reach, 0)],
        high=shares[min(middle + reach, len(shares) - 1)],
        seconds=statistics.median(ours - bare for ours, bare in between),
        bare_seconds=statistics.median(bare for _, bare in pairs), steps=len(shares),
    )  # fmt: skip


def chance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return how often a difference of means this large comes by chance alone: a two-sided permutation test."""
    together, size = [*first, *second], len(first)
    seen = abs(statistics.fmean(first) - statistics.fmean(second))
    indices = range(len(together))
    if math.comb(len(together), size) <= EXACT:
        chosen = list(itertools.combinations(indices, size))
    else:
        draw = random.Random(1)
        chosen = [tuple(draw.sample(indices, size)) for _ in range(EXACT)]
    total, rest = sum(together), len(together) - size
    hits = 0
    for picked in chosen:
        part = sum(together[i] for i in picked)
        hits += abs(part / size - (total - part) / rest) >= seen - 1e-12
    return hits / len(chosen)
