"""The wish to stop: signals set a flag and nothing else; all ranks agree on it by a collective at a step boundary.

A signal reaches the ranks at different steps, so a rank that acted on its own would leave the others in a collective
that never ends (as transformers' JIT checkpoint does when the ranks are not signalled at the same instant).
"""

from __future__ import annotations

import signal
from types import FrameType

from fullft_cluster.rundir import RunDir

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Whether this rank was asked to stop, by a signal or (rank 0 looks) by control/stop."""

    def __init__(self) -> None:
        self.signalled = False

    def install(self) -> None:
        """Take the signals over; in the main thread, before the slow imports."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.signalled = True

    def wanted(self, run: RunDir, rank: int) -> bool:
        """Return whether this rank has been asked to stop."""
        return self.signalled or (rank == 0 and run.stop.exists())
