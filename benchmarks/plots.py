"""The two figures of docs/backtest.md as SVG, the same bytes each time. Needs matplotlib (extra `benchmarks`)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import judge
from benchmarks.competitors import TOOLS
from benchmarks.rows import memory_rows

MEASURED, OURS = "#222222", "#1f77b4"
OTHERS = ("#d62728", "#ff7f0e", "#9467bd", "#8c564b", "#7f7f7f")
FIGURES = ("backtest-memory.svg", "backtest-throughput.svg")


def new_figure(width: float, height: float, rows: int | None = None) -> tuple[Any, Any]:
    """Return a figure and its axes (an array where there are rows), set up to hold neither a date nor chance."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "backtest", "svg.fonttype": "none", "font.size": 8, "axes.axisbelow": True})
    from matplotlib import pyplot  # noqa: PLC0415  after the backend is chosen

    return pyplot.subplots(rows or 1, figsize=(width, height), layout="constrained", squeeze=rows is None)


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    from matplotlib import pyplot  # noqa: PLC0415  after the backend is chosen

    pyplot.close(figure)


def _ticks(axis: Any, places: tuple[float, ...]) -> None:
    """Put plain numbers on a logarithmic axis."""
    axis.set_ticks(places, [f"{place:g}" for place in places])
    axis.set_ticks([], minor=True)


def memory(path: Path) -> None:
    """Draw each row of the ZeRO table: measured, ours, the other tools."""
    results = [judge.memory_result(row) for row in memory_rows("zero3_peak_llama7b.csv")]
    figure, axes = new_figure(8, 4)
    places = list(range(len(results)))
    ours = [result.ours for result in results]
    around = [
        [result.ours - result.low for result in results],
        [result.high - result.ours for result in results],
    ]
    for tool, colour in zip(TOOLS, OTHERS, strict=True):
        axes.scatter([r.others[tool.name] for r in results], places, s=18, color=colour, marker="x", label=tool.name)
    axes.errorbar(ours, places, xerr=around, fmt="o", markersize=4, color=OURS, label="fullft-cluster, low to high")
    measured = [result.row.peak_gib for result in results]
    axes.scatter(measured, places, s=60, color=MEASURED, marker="|", label="measured", zorder=3)
    axes.set_yticks(places, [result.row.name for result in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    _ticks(axes.xaxis, (0.5, 1, 2, 5, 10, 20, 50, 100, 200))
    axes.set_xlabel("peak of a GPU, GiB")
    axes.grid(axis="x", linewidth=0.4)
    figure.legend(fontsize=7, loc="outside upper center", ncols=4)
    save_figure(figure, path)


def throughput(path: Path) -> None:
    """Draw forecast over measured throughput, with intervals, of the fitted rows."""
    results = [judge.speed_result(row) for row in judge.fit.rows()]
    figure, axes = new_figure(5, 4.5)
    for engine, colour, name in (("fsdp", OURS, "LLM-foundry, FSDP"), ("deepspeed", OTHERS[0], "LLaMA-7B, DeepSpeed")):
        group = [result for result in results if result.row.setup.engine == engine]
        measured = [result.row.tokens_per_second_per_gpu for result in group]
        ours = [result.ours for result in group]
        around = [[r.ours - r.low for r in group], [r.high - r.ours for r in group]]
        axes.errorbar(measured, ours, yerr=around, fmt="o", markersize=3, linewidth=0.8, color=colour, label=name)
    ends = [300, 6000]
    axes.plot(ends, ends, color=MEASURED, linewidth=0.8, label="as measured")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis, (300, 500, 1000, 2000, 3000, 5000))
    axes.set_xlabel("measured, tokens a second and GPU")
    axes.set_ylabel("forecast, with its interval")
    axes.grid(linewidth=0.4)
    axes.legend(fontsize=7)
    save_figure(figure, path)


def stale(folder: Path) -> list[str]:
    """Return the figures that are missing, or not what would be drawn now.

    Only the matplotlib that drew them can tell: another version draws the same figure in other bytes.
    """
    wrong = [name for name in FIGURES if not (folder / name).is_file()]
    if wrong or importlib.util.find_spec("matplotlib") is None:
        return wrong
    version = f"Matplotlib v{importlib.metadata.version('matplotlib')},"
    drawn_by_it = [name for name in FIGURES if version in (folder / name).read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as now:
        draw(Path(now))
        return [name for name in drawn_by_it if Path(now, name).read_bytes() != (folder / name).read_bytes()]


def draw(folder: Path) -> None:
    """Write both figures into a folder."""
    memory(folder / FIGURES[0])
    throughput(folder / FIGURES[1])
