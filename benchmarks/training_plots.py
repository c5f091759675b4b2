"""The figure of docs/benchmarks.md about training as SVG. Needs matplotlib (extra `benchmarks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.plots import OTHERS, OURS, new_figure, save_figure
from benchmarks.training_page import OURS as OUR_NAME
from benchmarks.training_page import number
from benchmarks.training_stats import speeds, spread

FIGURE = "benchmarks-training.svg"


def draw(raw: dict[str, Any], path: Path) -> None:
    """Draw the speed of each candidate: a bar to the median, each round a dot."""
    comparisons = raw["comparisons"]
    lines = sum(len(each["samples"]) for each in comparisons)
    figure, axes = new_figure(7, 0.6 + 0.28 * lines + 0.35 * len(comparisons), len(comparisons))
    for each, place in zip(comparisons, axes.flat, strict=True):
        for row, (name, samples) in enumerate(each["samples"].items()):
            found = speeds(samples)
            median = spread(found).median
            place.barh(row, median, height=0.6, color=OURS if name == OUR_NAME else OTHERS[-1], alpha=0.75)
            place.plot(found, [row] * len(found), "|", color="#222222", markersize=6)
            place.annotate(f" {number(median)}", (max(found), row), va="center")
        place.set_yticks(range(len(each["samples"])), list(each["samples"]))
        place.invert_yaxis()
        place.margins(x=0.12)
        place.set_title(each["title"], loc="left", fontsize=8)
        place.grid(axis="x", linewidth=0.4)
    axes.flat[-1].set_xlabel("useful tokens a second; lines are single rounds")
    save_figure(figure, path)
