"""Writes docs/backtest.md: the planner's answers beside published measurements and other planners' formulas.

python -m benchmarks.planner_backtest            prints the bars, writes docs/backtest.md and (matplotlib) its figures
python -m benchmarks.planner_backtest --check    exits 1 where docs/backtest.md is not what it would write
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import gpu_section, memory_sections, speed_sections
from benchmarks.plots import draw, stale
from benchmarks.tables import Bar, table
from fullft_cluster import __version__

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "backtest.md"


def page() -> tuple[str, list[Bar]]:
    """Return the page's Markdown, and the bars."""
    sections, bars = [], []
    for make in (
        memory_sections.peaks,
        memory_sections.minimum,
        memory_sections.foundry_verdicts,
        speed_sections.throughput,
        memory_sections.host_and_disk,
        gpu_section.own_gpu,
    ):
        lines, decided = make()
        sections.append(lines)
        bars += decided
    head = [
        "# Backtest of the planner",
        "",
        "What the planner says of runs that others made and measured, beside what other planners say of them. Written",
        f"by `python -m benchmarks.planner_backtest` (fullft-cluster {__version__}); a test fails where it would write",
        "another page. The rows, their sources and what is doubtful: [benchmarks/data](../benchmarks/data/README.md).",
        "",
        "## Bars",
        "",
        *table(("asked", "", "figure"), (bar.row() for bar in bars), right=3),
    ]
    extra = [
        "## Rows that nothing was fitted to",
        "",
        *memory_sections.extra_memory(),
        "",
        *speed_sections.extra_throughput(),
    ]
    sections[0] = [*sections[0], "", *memory_sections.tools()]
    return "\n\n".join("\n".join(lines) for lines in (head, *sections, extra)) + "\n", bars


def show(bars: list[Bar]) -> None:
    """Print the bars."""
    shown = Table(title="Backtest of the planner")
    for column in ("asked", "", "figure"):
        shown.add_column(column)
    for bar in bars:
        shown.add_row(bar.asked, "[green]met" if bar.met else "[red]not met", bar.figure)
    Console().print(shown)


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/backtest.md is out of date")
    options = parser.parse_args(arguments)
    text, bars = page()
    show(bars)
    if options.check:
        if stale(DOCS) or not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is out of date: run `python -m benchmarks.planner_backtest`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed, so the figures stay: pip install -e '.[benchmarks]'", file=sys.stderr)
    else:
        draw(DOCS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
