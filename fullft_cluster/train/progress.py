"""A progress bar of the data preparation, on a terminal; in a log nothing, for nobody watches it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Bar:
    """Shows how many documents and tokens are done, and how fast. Use it as a context."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._tokens = self._documents = 0
        self._progress: Any = None

    def __enter__(self) -> Bar:
        self._began = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task(self._label, total=None)
            self._progress.start()
        return self

    def advance(self, documents: int, tokens: int) -> None:
        """Count what has been done since the last call."""
        self._documents += documents
        self._tokens += tokens
        if self._progress is not None:
            self._progress.update(self._task, description=self.words)

    @property
    def words(self) -> str:
        """Return what has been done: ``7,473 rows, 1.2M tokens, 0.40M tokens/s``."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = self._tokens / seconds / 1e6
        return f"{self._label}: {self._documents:,}, {self._tokens / 1e6:.1f}M tokens, {speed:.2f}M tokens/s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
