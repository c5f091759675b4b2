"""How the pods of a run and its supervisor agree on attempts: by files on the volume that they share.

Pods start by themselves, so each lays down a ticket that is new in each life of a container and in each attempt. The
supervisor opens an attempt with the tickets of all nodes, once none of them is of an attempt before. A pod works in the
attempt that names its ticket; what a past attempt left is never taken for the present one. What follows an attempt the
pods read in run.json, so a supervisor that is started again has nothing to say twice.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime.evidence import report


class Ticket(Frozen, frozen=True):
    """One node of the run, as it offers itself for an attempt."""

    ticket: str
    """New in each life of a container and in each attempt."""
    node: str
    """Name of the node in the cluster."""
    pod: str
    uid: str
    """Of the pod's object."""


class Opened(Frozen, frozen=True):
    """The newest attempt that was opened, with the tickets of its nodes in the order of their ranks."""

    attempt: int
    tickets: tuple[Ticket, ...]


class Meeting:
    """The files. Making one touches nothing."""

    def __init__(self, run: RunDir) -> None:
        self.directory = run.path / "control" / "pods"

    def make(self) -> None:
        """Make the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def refresh(self) -> None:
        """See what others have written."""
        refresh(self.directory)

    # --- what a pod writes
    def lay(self, rank: int, ticket: Ticket) -> None:
        """Lay down the ticket of a node."""
        write_json(self.directory / f"node-{rank}.json", msgspec.to_builtins(ticket))

    def ticket(self, rank: int) -> Ticket | None:
        """Return the newest ticket of a node."""
        try:
            return msgspec.convert(report(self.directory / f"node-{rank}.json"), Ticket)
        except msgspec.ValidationError:
            return None

    def beat(self, rank: int) -> None:
        """Give a sign of life of a node's agent."""
        with contextlib.suppress(OSError):  # a full disk ends a checkpoint, not the agent
            (self.directory / f"beat-{rank}").touch()

    def last_beat(self, rank: int) -> int:
        """Return a number that changes with each sign of life (the volume's clock; it is compared to itself alone)."""
        try:
            return (self.directory / f"beat-{rank}").stat().st_mtime_ns
        except OSError:
            return 0

    # --- what the supervisor writes
    def open(self, attempt: int, tickets: tuple[Ticket, ...]) -> None:
        """Open an attempt: the pods with these tickets start their workers."""
        write_json(self.directory / "attempt.json", msgspec.to_builtins(Opened(attempt=attempt, tickets=tickets)))

    def opened(self) -> Opened | None:
        """Return the newest attempt, None before the first."""
        try:
            return msgspec.convert(report(self.directory / "attempt.json"), Opened)
        except msgspec.ValidationError:
            return None

    def give_up(self, attempt: int) -> None:
        """Have every pod of an attempt kill its workers."""
        write_json(self.directory / "given-up.json", {"attempt": attempt})

    def given_up(self, attempt: int) -> bool:
        """Return whether the workers of an attempt are to be killed; those of one before it as well."""
        newest = report(self.directory / "given-up.json").get("attempt")
        return isinstance(newest, int) and newest >= attempt


def refresh(directory: Path) -> None:
    """Have the names in a directory looked up anew.

    A client of NFS remembers names, and that one was not there, for half a minute; to open the directory ends that.
    """
    with contextlib.suppress(OSError):
        list(directory.iterdir())
