"""A pod's agent with workers that are small shell scripts, and a test in the part of its supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fullft_cluster.rundir import RunDir, read_json
from fullft_cluster.runtime import pod_agent
from fullft_cluster.runtime.meeting import Meeting, Ticket
from fullft_cluster.runtime.node import Node, die_with_parent
from fullft_cluster.runtime.pod_agent import Agent

PATIENCE = 60.0  # for what takes milliseconds, on a machine that does other things
STOPS = "trap 'exit 75' TERM; echo up; while :; do sleep 0.02; done"
"""Works until it is told to stop, and has a checkpoint then."""


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


class Crew(Node):
    """Workers that run a script each: the lines of RUN/scripts/attempt-K."""

    def start(self) -> None:
        log = self.run.node_log(self.attempt, self.node_rank)
        scripts = (self.run.path / "scripts" / f"attempt-{self.attempt}").read_text().splitlines()
        with log.open("ab") as out:
            for text in scripts:
                # As the real ones: they end with their agent.
                child = subprocess.Popen(["sh", "-c", text], stdout=out, preexec_fn=die_with_parent)  # noqa: PLW1509
                self.workers.append(child)


def scripted(run: RunDir, attempt: int, *scripts: str) -> None:
    (run.path / "scripts").mkdir(exist_ok=True)
    (run.path / "scripts" / f"attempt-{attempt}").write_text("\n".join(scripts))


class Desk:
    """What a supervisor does with one node's tickets."""

    def __init__(self, run: RunDir, rank: int = 0) -> None:
        self.run, self.rank, self.meeting = run, rank, Meeting(run)
        self.seen: list[str] = []

    def new_ticket(self) -> Ticket:
        """Wait for a ticket that was not there before."""

        def look() -> Ticket | None:
            found = self.meeting.ticket(self.rank)
            return found if found is not None and found.ticket not in self.seen else None

        ticket: Ticket = wait_for(look)
        self.seen.append(ticket.ticket)
        return ticket

    def open(self, attempt: int, *scripts: str, ticket: Ticket | None = None) -> Ticket:
        """Open an attempt with the node's new ticket."""
        ticket = ticket or self.new_ticket()
        scripted(self.run, attempt, *scripts)
        self.run.update_run(state="running", attempt=attempt)
        self.run.exits(attempt).mkdir(parents=True, exist_ok=True)
        self.meeting.open(attempt, (ticket,))
        return ticket

    def ended(self, attempt: int) -> list[int]:
        """Wait for the end of the node's workers; return their exit codes."""
        path = self.run.exits(attempt) / f"node-{self.rank}.json"
        found: dict[str, Any] = wait_for(lambda: path.exists() and read_json(path))
        return list(found["exit_codes"])

    def up(self, attempt: int, workers: int = 1) -> None:
        """Wait until so many workers have said `up`."""
        log = self.run.node_log(attempt, self.rank)
        wait_for(lambda: log.exists() and log.read_bytes().count(b"up") == workers)


class Thread:
    """An agent in a thread: it gets no signal."""

    def __init__(self, run: RunDir, rank: int = 0, stopped_exit: int = 75) -> None:
        self.agent = Agent(run, rank, stopped_exit)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.agent.run()

    def join(self) -> int:
        self._thread.join(timeout=PATIENCE)
        assert self.code is not None, "the agent does not leave"
        return self.code


PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import pod_world
from fullft_cluster.runtime import node, pod, pod_agent
pod_agent.Node, pod_agent.POLL_SECONDS, node.POLL_SECONDS = pod_world.Crew, 0.01, 0.01
pod.wait_for_data = lambda run: None
sys.exit(pod.main())
"""


@contextmanager
def process(run: RunDir, *arguments: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """The agent as a pod has it: a process that can be told to leave. `before`: a program that runs first in it."""
    command = [sys.executable, "-c", f"{before}\n{PROGRAM}", str(Path(__file__).parent), "node"]
    command += ["--run", str(run.path), "--files", str(run.path), "--node-rank", "0", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()


__all__ = ["STOPS", "Crew", "Desk", "Thread", "pod_agent", "process", "wait_for"]
