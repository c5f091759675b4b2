"""Candidates that take turns: all are started and warmed, then each in turn trains a few steps while the others wait.

The machine's speed drifts by more than what is to be told apart, so candidates are compared within a round, in which
each had the machine for itself a moment before or after the other.

A rank reads `STEPS\\n` from its standard input, trains so many steps and answers `{"seconds", "tokens"}` on its
standard output; all else that it prints goes to its log. A waiting rank sleeps in a read and takes no CPU.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from benchmarks.training_case import ROOT, Bench


class Sample(NamedTuple):
    """One turn of one candidate."""

    seconds: float
    """Of the slowest rank."""
    tokens: int
    """Real tokens (no padding) that all ranks together learnt from."""
    steps: int
    """Optimizer steps."""


class Turns:
    """The side of a rank: told to train some steps, it measures them."""

    def __init__(self) -> None:
        # Libraries print; only the answers may reach the parent.
        self._answers: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._began = 0.0
        self._tokens: Callable[[int, int], int] = lambda first, last: 0
        self._done = 0
        self._first = 0
        self.facts: dict[str, Any] = {}

    def count_tokens(self, tokens: Callable[[int, int], int]) -> None:
        """Set what returns the tokens of the steps [first, last)."""
        self._tokens = tokens

    def start(self) -> None:
        """Wait for the first turn; called when everything is set up, before the first step."""
        self._wait()

    def step_done(self) -> None:
        """Count a step; at the end of a turn, answer and wait for the next one."""
        now = time.perf_counter()
        self._left -= 1
        self._done += 1
        if not self._left:
            answer = {"seconds": now - self._began, "tokens": self._tokens(self._first, self._done), **self.facts}
            print(json.dumps(answer), file=self._answers, flush=True)
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:  # the parent has gone, or wants no more
            os._exit(0)
        self._left, self._first = int(line), self._done
        self._began = time.perf_counter()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment of a rank: what our node agent sets, and the same number of threads for all.

    LOCAL_SIZE is what DeepSpeed's launcher sets and torchrun does not; our worker sets it itself. It spares the others,
    too, a `numactl` for every gradient.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    return {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "PYTHONPATH": str(ROOT),
        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks),
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


@dataclass
class Candidate:
    """What is compared: the name of a way to train (see training_rank.py), and the bench that it trains on."""

    name: str
    way: str
    bench: Bench


class Team:
    """The ranks of one candidate."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.facts: dict[str, Any] = {}
        ranks, port = candidate.bench.case.processes, free_port()
        self._logs = [candidate.bench.path / f"{candidate.way}-{rank}.log" for rank in range(ranks)]
        self._ranks = [self._start(rank, ranks, port) for rank in range(ranks)]

    def _start(self, rank: int, ranks: int, port: int) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "benchmarks.training_rank", self.candidate.way, str(self.candidate.bench.path),
        ]  # fmt: skip
        with self._logs[rank].open("wb") as log:
            return subprocess.Popen(
                command, env=rank_environment(rank, ranks, port), cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def tell(self, steps: int) -> None:
        """Give the turn."""
        for process in self._ranks:
            assert process.stdin
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()

    def answer(self, steps: int) -> Sample:
        """Wait for the end of the turn. Raises RuntimeError when a rank has died."""
        answers = []
        for rank, process in enumerate(self._ranks):
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{self.candidate.name}, rank {rank}:\n{self._log(rank)}")
            answers.append(json.loads(line))
        self.facts = {key: value for key, value in answers[0].items() if key not in ("seconds", "tokens")}
        seconds, tokens = max(a["seconds"] for a in answers), sum(a["tokens"] for a in answers)
        return Sample(seconds=seconds, tokens=tokens, steps=steps)

    def _log(self, rank: int) -> str:
        return self._logs[rank].read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End the ranks."""
        for process in self._ranks:
            process.kill()
            process.wait()


def compare(
    candidates: Sequence[Candidate], *, rounds: int, steps: int, warmup: int = 2, tell: Callable[[str], None] = print
) -> tuple[dict[str, list[Sample]], dict[str, dict[str, Any]]]:
    """Return each candidate's turns, round by round, and what it says of itself.

    Each round's order is the last one's turned round by one place, so that none always follows the same other.
    """
    teams: list[Team] = []
    samples: dict[str, list[Sample]] = {candidate.name: [] for candidate in candidates}
    try:
        teams += [Team(candidate) for candidate in candidates]
        for team in teams:
            team.tell(warmup)
        for team in teams:  # all are ready, and at rest, before the first is measured
            team.answer(warmup)
        for number in range(rounds):
            for team in teams[number % len(teams) :] + teams[: number % len(teams)]:
                team.tell(steps)
                samples[team.candidate.name].append(team.answer(steps))
            tell(
                f"round {number + 1} of {rounds}: "
                + ", ".join(f"{n} {s[-1].seconds:.2f} s" for n, s in samples.items())
            )
        return samples, {team.candidate.name: team.facts for team in teams}
    finally:
        for team in teams:
            team.stop()
