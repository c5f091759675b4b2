"""A progress bar of the data preparation, on a terminal; in a log nothing, for nobody watches it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fullft_cluster.row_files import kind_of
from fullft_cluster.row_sources import RowSource, files_of


class Bar:
    """Shows how many rows and tokens are done, of how many, and how fast. Use it as a context."""

    def __init__(self, label: str, total: float | None = None) -> None:
        """`total` is of rows; None where it is not known."""
        self._label, self._total = label, total
        self._tokens = self._rows = 0
        self._progress: Any = None

    def __enter__(self) -> Bar:
        self._began = time.monotonic()
        if watched():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            )  # fmt: skip
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task(self._label, total=self._total)
            self._progress.start()
        return self

    def advance(self, rows: int, tokens: int) -> None:
        """Count what has been done since the last call."""
        self._rows += rows
        self._tokens += tokens
        if self._progress is not None:
            self._progress.update(self._task, description=self.words, completed=self._rows)

    @property
    def words(self) -> str:
        """Return what has been done: ``rows: 7,473, 2.1M tokens, 0.81M tokens/s``."""
        speed = self._tokens / max(time.monotonic() - self._began, 1e-9)
        return f"{self._label}: {self._rows:,}, {self._tokens / 1e6:.1f}M tokens, {speed / 1e6:.2f}M tokens/s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def watched() -> bool:
    """Return whether somebody looks at what is written on stderr."""
    return sys.stderr.isatty()


def count_rows(sources: Sequence[RowSource]) -> float | None:
    """Return about how many rows the sources have: lines, or what Parquet says; None where that is not known."""
    if any(source.kind == "hub" for source in sources):
        return None
    total = 0.0
    for source in sources:
        for path in files_of(source):
            rows = _count(path, source.key)
            if rows is None:
                return None
            total += rows * source.weight
    return total


def _count(path: Path, key: str) -> int | None:
    kind = kind_of(path, key)
    if kind == "parquet":
        import pyarrow.parquet

        rows: int = pyarrow.parquet.read_metadata(path).num_rows
        return rows
    if kind == "json":
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b""))
