"""Heartbeats through the phases in which nothing counts steps: loading, saving, exporting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from fullft_cluster.train.setup import Job

PHASE_SECONDS = 2 * 3600
"""How long a phase is kept alive. A checkpoint of 65B is 780 GB: 65 minutes at 0.2 GB/s, which is slow for a file
system that serves a cluster. A phase that takes two hours and `survival.hang_seconds` on top is taken for a hang."""
_MOST_SECONDS_BETWEEN = 30.0


@contextlib.contextmanager
def keep_beating(job: Job, step: int, phase: str) -> Iterator[None]:
    """Write this rank's heartbeat at once, and then from a thread until the block ends, or `PHASE_SECONDS` are over.

    Not for `train`: a step that stands still is to be seen as a hang. It is a daemon thread, so that an `os._exit` does
    not wait for it; it is gone when the block ends, so that no late beat overwrites one of the next phase.
    """
    interval = min(_MOST_SECONDS_BETWEEN, job.config.survival.hang_seconds / 4)
    over = threading.Event()

    def work() -> None:
        for _ in range(int(PHASE_SECONDS / interval)):
            if over.wait(interval):
                return
            with contextlib.suppress(OSError):  # a full disk: for the phase itself to notice
                job.run.beat(job.identity.rank, step, phase)

    job.run.beat(job.identity.rank, step, phase)
    thread = threading.Thread(target=work, name=f"heartbeat-{phase}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
