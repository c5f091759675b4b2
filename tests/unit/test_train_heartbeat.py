"""train.heartbeat: a long load, save or export is no hang, and one that never ends is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fullft_cluster.train import heartbeat

DEADLINE_SECONDS = 60


class Beats:
    """Stands for a RunDir: counts beats, and fails where it is told to."""

    def __init__(self, enough: int, error: OSError | None = None) -> None:
        self.seen: list[tuple[int, int, str]] = []
        self.error, self._enough, self.reached = error, enough, threading.Event()

    def beat(self, rank: int, step: int, phase: str) -> None:
        self.seen.append((rank, step, phase))
        if len(self.seen) >= self._enough:
            self.reached.set()
        if self.error and len(self.seen) > 1:
            raise self.error


def job(run: Beats, hang_seconds: float) -> Any:
    return SimpleNamespace(
        run=run,
        identity=SimpleNamespace(rank=3),
        config=SimpleNamespace(survival=SimpleNamespace(hang_seconds=hang_seconds)),
    )


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat-")]


@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device")])
def test_beats_until_the_phase_ends(error: OSError | None) -> None:
    run = Beats(enough=5, error=error)
    with heartbeat.keep_beating(job(run, 0.004), 7, "save"):
        assert run.reached.wait(DEADLINE_SECONDS)
        assert all(thread.daemon for thread in own_threads()), "os._exit and the end of main wait for none"
    assert not own_threads()
    assert set(run.seen) == {(3, 7, "save")}


def test_a_phase_that_never_ends_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "PHASE_SECONDS", 0.008)
    run = Beats(enough=99)
    with heartbeat.keep_beating(job(run, 0.004), 0, "load"):
        for thread in own_threads():
            thread.join(DEADLINE_SECONDS)
        assert not own_threads()
    assert len(run.seen) == 1 + 8


def test_the_thread_ends_with_a_phase_that_fails() -> None:
    with pytest.raises(RuntimeError), heartbeat.keep_beating(job(Beats(enough=1), 1800), 0, "export"):
        raise RuntimeError
    assert not own_threads()
