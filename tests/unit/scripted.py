"""Runs whose workers end as a script says, for the tests of the supervisor."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.config_load import resolve, to_yaml
from fullft_cluster.model import load_model
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.rundir import RunDir, append_line, read_lines, write_atomic, write_json
from fullft_cluster.runtime.policy import Decision
from fullft_cluster.runtime.supervisor import Supervisor

NODES = ("node1",)


def scripted_run(tmp_path: Path) -> RunDir:
    """Return the directory of a run of two workers on one node."""
    resolved = resolve({"backend": "local", "model": "tiny", "train.max_steps": 10}, [], None)
    run = RunDir(tmp_path / "run")
    run.make()
    write_atomic(run.config, to_yaml(resolved))
    plan = make_plan(resolved.config, load_model("tiny"), resolved.cluster, Data(rows=100))
    assert plan.gpus == 2
    write_atomic(run.plan, plan.to_json())
    run.update_run(name="run", backend="local", state="pending", attempt=0, restarts=0)
    return run


class Script:
    """A platform whose attempts end as they are told to."""

    def __init__(self, run: RunDir, *lives: Callable[[RunDir, int], None], here: bool = True) -> None:
        self.run, self.lives, self.here = run, list(lives), here
        self.requeued: list[tuple[str, tuple[str, ...]]] = []
        self.life: str | None = None
        self.past: str | None = None
        self.down: tuple[str, ...] = ()
        self.reason = "time_limit"
        self.killed = False
        self.opened = True
        """Whether the attempt that run.json numbers was started."""
        self.under_way: Callable[[RunDir, int], None] | None = None
        """How the attempt ends that a supervisor before this one has started; None where it ended with it."""
        self.asked_for: list[int] = []

    def nodes(self) -> tuple[str, ...]:
        return NODES

    def start(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        return self._live(self.lives.pop(0), run, attempt)

    def _live(self, life: Callable[[RunDir, int], None], run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        if getattr(life, "endless", False):
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        life(run, attempt)
        return subprocess.Popen(["true"])

    def running(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes] | None:
        self.asked_for.append(attempt)
        return self._live(self.under_way, run, attempt) if self.under_way else None

    def began(self, run: RunDir, attempt: int) -> bool:
        return self.opened

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        self.killed = True
        child.kill()

    def why(self, signum: int, lead_seconds: int) -> str:
        return self.reason

    def life_state(self) -> str | None:
        return self.life

    def past_life_state(self) -> str | None:
        return self.past

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        return self.down

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        self.requeued.append((decision.cause, excluded))
        return self.here


def ends(
    *codes: int, kind: str = "other", steps: Sequence[int] = (), commit: int | None = None
) -> Callable[[RunDir, int], None]:
    """A life: logs some steps, commits a checkpoint perhaps, and ends with these exit codes."""

    def life(run: RunDir, attempt: int) -> None:
        for step in steps:
            append_line(run.metrics, {"step": step, "loss": 1.0, "attempt": attempt, "time": time.time()})
        if commit is not None:
            directory = run.checkpoints / f"step-{commit}"
            directory.mkdir()
            (directory / "COMPLETE").write_text("{}")
        for rank, code in enumerate(codes):
            report = {
                "rank": rank,
                "exit_code": code,
                "kind": kind,
                "message": "words",
                "step": steps[-1] if steps else 0,
                "resumed_from": steps[0] - 1 if steps and steps[0] > 1 else None,
            }
            write_json(run.exits(attempt) / f"rank-{rank}.json", report)
        write_json(run.exits(attempt) / "node-0.json", {"node": "node1", "node_rank": 0, "exit_codes": list(codes)})

    return life


def endless(run: RunDir, attempt: int) -> None:
    """A life that stands still until it is ended."""


endless.endless = True  # type: ignore[attr-defined]


def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the supervisor pause for no time; the handlers that it installs are taken back."""
    monkeypatch.setattr("fullft_cluster.runtime.supervisor.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("fullft_cluster.runtime.supervisor.POLL_SECONDS", 0.02)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def supervise(run: RunDir, platform: Any) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    code = Supervisor(run, platform).supervise()
    return code, list(read_lines(run.attempts)), run.read_run()
