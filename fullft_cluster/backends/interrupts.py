"""Interrupts that wait until a step is done: what is half sent is finished first, so that it can be taken back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Those that came. ``check()`` raises for them; the second one is not held back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._came: int | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._came is not None:
            self.check()
        self._came = number
        self._say("stopping after this step; once more stops at once")

    def check(self) -> None:
        """Raise KeyboardInterrupt for SIGINT, SystemExit for SIGTERM, if it has come."""
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        if self._came is not None:
            raise SystemExit(128 + self._came)


@contextmanager
def held_back(say: Callable[[str], None]) -> Iterator[Interrupts]:
    """Hold interrupts back for the length of a block; elsewhere than in the main thread none arrive."""
    found = Interrupts(say)
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.take) for number in SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
