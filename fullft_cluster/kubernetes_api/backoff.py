"""How long to wait before a request is repeated: longer each time, with jitter, as client-go's rest client does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_SECONDS = 0.25
MOST_SECONDS = 5.0


class Backoff:
    """The pauses of one outage. ``patience_seconds``: after so long in all it is given up; None never."""

    def __init__(self, patience_seconds: float | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._started = time.monotonic()
        self._patience, self._sleep = patience_seconds, sleep
        self.tries = 0

    @property
    def elapsed_seconds(self) -> float:
        """Return the time since the first failure was seen."""
        return time.monotonic() - self._started

    def pause(self, at_least: float = 0.0) -> bool:
        """Wait before another try; False, at once, when there is to be none.

        ``at_least``: seconds that the server asked for (Retry-After).
        """
        delay = min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.tries, 10)) * random.uniform(0.5, 1.0)
        delay = max(delay, at_least)
        if self._patience is not None and self.elapsed_seconds + delay > self._patience:
            return False
        self.tries += 1
        self._sleep(delay)
        return True
