"""One node's agent inside its pod: attempt after attempt in the same container, until the run is over.

A restart of the world is a new attempt in the pods that are there, so that neither GPUs nor images are given back for
it; only a pod that went away is made anew, by the kind's controller. An agent leaves its pod when the run is over, when
it is told to (SIGTERM: eviction, preemption, drain, Kueue), or when nobody has a word for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

from fullft_cluster.errors import FullftError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime.meeting import Meeting, Ticket
from fullft_cluster.runtime.node import Node
from fullft_cluster.runtime.policy import EXIT_DO_NOT_REQUEUE, EXIT_DONE, EXIT_STOPPED, node_exit_code

POLL_SECONDS = 0.5
BEAT_SECONDS = 5.0

PEERS_SECONDS = 1800.0
"""How long a pod waits for an attempt: what a node may take to pull a large image. Then it leaves, and the controller
makes it anew: two runs that hold half of the cluster each would wait for ever. Default."""

ENDED_SECONDS = 900.0
"""How long a pod waits for a run that has ended to be opened again: `resume` starts the pods and the supervisor at the
same time, and the supervisor's may have to wait in a queue, or for its image."""

WORD_SECONDS = 1800.0
"""How long a pod waits for what follows an attempt; the supervisor's own pod may have to be made anew meanwhile."""


class Agent:
    """The agent of one node. `run` returns the exit code of the container."""

    def __init__(self, run: RunDir, node_rank: int, stopped_exit: int = EXIT_STOPPED) -> None:
        self.run_dir, self.node_rank, self.stopped_exit = run, node_rank, stopped_exit
        self.meeting = Meeting(run)
        self.node: Node | None = None
        self.terminated = False
        self.last_attempt: int | None = None
        self.uid = os.environ.get("POD_UID", "")
        self._beaten = self._looked = 0.0

    def install_handlers(self) -> None:
        """Catch the kubelet's SIGTERM: the first process of a container ignores it unless it has a handler."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True
        if self.node is None:
            raise SystemExit(self.stopped_exit)
        self.node.ask_to_stop(signum, frame)

    def run(self) -> int:
        """Work until the run is over for this pod; return the exit code: 93 for what a new pod would repeat."""
        self.meeting.make()
        while True:
            if self._is_replaced():
                _say("another pod has taken this node's place: leaving")
                return self.stopped_exit
            ticket = self._lay_ticket()
            found = self._wait_for_attempt(ticket)
            if isinstance(found, _Leave):
                return found.code
            self.last_attempt = found
            code = self._work(found)
            if self.terminated:
                return self._leaving(code)
            said = self._wait_for_word(found)
            if said is not None:
                return said

    def _leaving(self, code: int) -> int:
        """Return the exit code of a pod that was told to go: what its workers' failure means, the supervisor says."""
        return code if code in (EXIT_DONE, EXIT_DO_NOT_REQUEUE) else self.stopped_exit

    def _lay_ticket(self) -> Ticket:
        name = os.environ.get("POD_NAME") or os.uname().nodename
        node = os.environ.get("NODE_NAME") or os.uname().nodename
        ticket = Ticket(ticket=uuid.uuid4().hex, node=node, pod=name, uid=self.uid)
        self.meeting.lay(self.node_rank, ticket)
        return ticket

    def _is_replaced(self) -> bool:
        """Return whether another pod has this node's place: ours was given up while its node was cut off."""
        if self.last_attempt is None:
            return False
        newest = self.meeting.ticket(self.node_rank)
        return newest is not None and newest.uid != self.uid

    def _state(self) -> dict[str, Any]:
        """Return run.json; empty while it cannot be read: a volume that stumbles is no reason to leave."""
        try:
            return self.run_dir.read_run()
        except (OSError, FullftError):
            return {}

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            self._beaten = time.monotonic()
            self.meeting.beat(self.node_rank)
            self.meeting.refresh()

    def _pause(self) -> None:
        self._beat()
        self.meeting.refresh()
        time.sleep(POLL_SECONDS)

    def _wait_for_attempt(self, ticket: Ticket) -> int | _Leave:
        started = time.monotonic()
        while True:
            opened = self.meeting.opened()
            if opened is not None and ticket in opened.tickets:
                return opened.attempt
            waited, state = time.monotonic() - started, self._state().get("state")
            if state == "completed":
                return _Leave(EXIT_DONE)
            if state in ("failed", "cancelled") and waited > ENDED_SECONDS:
                _say(f"the run is {state}")
                return _Leave(EXIT_DO_NOT_REQUEUE)
            if waited > PEERS_SECONDS:
                _say(f"no attempt began within {PEERS_SECONDS:.0f} s: leaving, to be made anew")
                return _Leave(self.stopped_exit)
            self._pause()

    def _work(self, attempt: int) -> int:
        """Run this node's workers in an attempt; return one exit code for all of them."""
        log = self.run_dir.node_log(attempt, self.node_rank)
        _say(f"attempt {attempt}, node {self.node_rank}")
        node = Node(self.run_dir, attempt, self.node_rank)
        self.node = node  # from here on a signal is forwarded
        node.start()
        echo = _Echo(log)
        codes = node.wait(lambda: self._given_up(attempt))
        echo.end()
        node.report(codes)
        self.node = None
        code = node_exit_code(codes)
        _say(f"attempt {attempt}, node {self.node_rank}: the workers ended {', '.join(map(str, codes))}")
        return code

    def _given_up(self, attempt: int) -> bool:
        """Return whether the workers are to be killed; meanwhile the agent's signs of life, and its own order to leave.

        The workers get the signal as well; the file reaches those of other nodes that are not in a step yet.
        """
        self._beat()
        if time.monotonic() - self._looked < POLL_SECONDS:
            return False
        self._looked = time.monotonic()
        opened = self.meeting.opened()
        if opened is not None and opened.attempt > attempt:
            return True  # a newer attempt is open, without this pod: it was cut off, and is too late
        if self.terminated:
            with contextlib.suppress(OSError):  # the workers have the signal
                if not self.run_dir.stop.exists():
                    write_json(self.run_dir.stop, {"reason": "terminated", "time": time.time(), "attempt": attempt})
        return self.meeting.given_up(attempt)

    def _wait_for_word(self, attempt: int) -> int | None:
        """Return the exit code that the end of an attempt leads to, None when another attempt follows."""
        started = time.monotonic()
        while time.monotonic() - started < WORD_SECONDS:
            run = self._state()
            state = run.get("state")
            if run.get("attempt", attempt) != attempt or state in ("requeued", "pending"):
                return None
            if state == "completed":
                return EXIT_DONE
            if state in ("failed", "cancelled"):
                _say(f"the run is {state}: {run.get('reason')}")
                return EXIT_DO_NOT_REQUEUE
            self._pause()
        _say(f"nobody said within {WORD_SECONDS:.0f} s what follows: leaving, to be made anew")
        return self.stopped_exit


class _Leave:
    """Instead of an attempt: the exit code with which the pod leaves."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Echo:
    """Copies what is appended to a log to this process's output, for `kubectl logs`."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Copy the rest."""
        self._over.set()
        self._thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._copy()
        self._copy()

    def _copy(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                text = file.read()
        except OSError:
            return
        self.position += len(text)
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


def _say(words: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} agent: {words}\n")
    sys.stdout.flush()
