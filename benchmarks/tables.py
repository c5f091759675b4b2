"""Markdown for benchmarks/report.py: tables, percentages, bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What is asked of the planner, whether it does it, and the figure that says so."""

    asked: str
    met: bool
    figure: str

    def row(self) -> tuple[str, str, str]:
        """Return its line of the table of bars."""
        return self.asked, "met" if self.met else "**not met**", self.figure


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> list[str]:
    """Return a table; columns from ``right`` on hold figures and are set to the right."""
    rule = ["---" if i < right else "---:" for i in range(len(head))]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]


def percent(value: float) -> str:
    """Return a signed error: ``+2.8 %``."""
    text = f"{100 * value:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text.replace("-", "−")


def share(value: float) -> str:
    """Return an unsigned share: ``4.4 %``."""
    return f"{100 * value:.1f} %"


def gib(value: float) -> str:
    """Return an amount in GiB to one digit."""
    return f"{value:.1f}"


def yes(value: bool) -> str:
    """Return a truth as a reader sees it at a glance."""
    return "yes" if value else "**no**"
