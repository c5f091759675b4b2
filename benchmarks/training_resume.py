"""From the start of a process to its first new step, after few and after many steps of the data.

A run of a small model really trains to both steps and stops there, with a committed checkpoint. Then workers are
started on both in turns, and end after their first new step, before they have written anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training_case import ROOT, Bench, Case, make_bench
from benchmarks.training_turns import free_port, rank_environment
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import engine, exits, worker
from fullft_cluster.train.setup import Identity
from fullft_cluster.train.stop import StopFlag

MARK = "MOMENTS "


class StopAt(StopFlag):
    """Wants to stop when so many steps have been done in this process."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps + 1  # it is asked once before the first

    def wanted(self, run: RunDir, rank: int) -> bool:
        """Count a step."""
        self._left -= 1
        return self._left <= 0 or super().wanted(run, rank)


class FirstStep(StopFlag):
    """Prints when the engine stood, when the checkpoint was loaded and when the first step was done, and leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[str, float] = {}

    def wanted(self, run: RunDir, rank: int) -> bool:
        """Note a moment: the first question comes right before the first step."""
        if "resumed" not in self.moments:
            self.moments["resumed"] = time.monotonic()
            return super().wanted(run, rank)
        self.moments["first_step"] = time.monotonic()
        print(MARK + json.dumps(self.moments), flush=True)
        os._exit(0)


def note_engine(moments: dict[str, float]) -> None:
    """Let the moment be noted at which the engine stands."""
    make = engine.make_engine

    def noted(*arguments: Any, **keywords: Any) -> Any:
        made = make(*arguments, **keywords)
        moments["engine"] = time.monotonic()
        return made

    engine.make_engine = noted


def child(what: str, run: RunDir) -> int:
    """Train some steps (`what` is their number) or resume (`first`)."""
    attempt = run.read_run()["attempt"]
    if what == "first":
        stop = FirstStep()
        note_engine(stop.moments)
        return worker.work(run, attempt, Identity.from_environment(os.environ), stop)
    return worker.work(run, attempt, Identity.from_environment(os.environ), StopAt(int(what)))


def start(bench: Bench, run: RunDir, what: str) -> tuple[float, str]:
    """Run a child; return when it was started and what it printed. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "benchmarks.training_resume", what, str(run.path)]
    began = time.monotonic()
    done = subprocess.run(
        command, env=rank_environment(0, 1, free_port()), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in (exits.DONE, exits.STOPPED):
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return began, done.stdout


def moments(bench: Bench, run: RunDir) -> dict[str, float]:
    """Return seconds from the process's start to the first new step, and from the engine's being there to it."""
    began, printed = start(bench, run, "first")
    line = next(line for line in printed.splitlines() if line.startswith(MARK))
    found = json.loads(line.removeprefix(MARK))
    return {
        "start": found["first_step"] - began, "engine": found["first_step"] - found["engine"],
        "resumed": found["first_step"] - found["resumed"],
    }  # fmt: skip


def measure(
    folder: Path, case: Case, places: tuple[int, int], repeats: int, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the samples of both places, made in turns."""
    bench = make_bench(folder, case)
    runs: dict[int, RunDir] = {}
    done = 0
    for attempt, place in enumerate(places, start=1):
        bench.run.update_run(attempt=attempt)
        began, _ = start(bench, bench.run, str(place - done))
        tell(f"trained to step {place} in {time.monotonic() - began:.0f} s")
        done = place
        copy = RunDir(folder / f"run-{place}")
        shutil.copytree(bench.run.path, copy.path)
        runs[place] = copy
    samples: dict[int, list[dict[str, float]]] = {place: [] for place in places}
    for number in range(repeats):
        for place in places if number % 2 else places[::-1]:
            samples[place].append(moments(bench, runs[place]))
        tell(f"repeat {number + 1}: " + ", ".join(f"step {p}: {s[-1]['start']:.2f} s" for p, s in samples.items()))
    return {"places": list(places), "samples": {str(place): found for place, found in samples.items()}}


if __name__ == "__main__":
    os._exit(child(sys.argv[1], RunDir(Path(sys.argv[2]))))
