"""The pods of one attempt, watched from outside: it stands where a launcher's process stands on SLURM."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from fullft_cluster.kubernetes_api import Json, Watched
from fullft_cluster.rundir import RunDir
from fullft_cluster.runtime import evidence, pod_state
from fullft_cluster.runtime.meeting import Meeting, Opened, Ticket, refresh
from fullft_cluster.runtime.policy import EXIT_DONE, EXIT_STOPPED

LOOK_SECONDS = 1.0
SILENT_SECONDS = 30.0
"""After so long without a sign of life of its agent, a pod that is not ready or told to go is taken for lost: six
signs, and more than a volume's server that fails over takes."""

REPORT_SECONDS = 30.0
"""How long the last words of a pod that is gone may take to be seen on the volume: NFS remembers for so long that a
file was not there (acdirmin in nfs(5))."""

STUCK_SECONDS = 120.0
"""After so long a node that was told to kill its workers has not: they cannot be killed (a GPU that fell off the bus, a
mount that hangs). Its pod is deleted, and the node is taken for lost."""

SLOW_SECONDS = 2.0
"""A look at the volume that takes longer says something of the volume, and nothing of the agents."""

PEERS_SECONDS = 60.0
"""How long the other nodes may take to end by themselves, once one has failed or is gone: srun's --wait on SLURM."""

log = logging.getLogger("supervisor")


class Vigil:
    """Knows which pods are lost: silent on the volume, and not well in the cluster's eyes."""

    def __init__(self, meeting: Meeting, silent_seconds: float = SILENT_SECONDS) -> None:
        self.meeting, self.silent_seconds = meeting, silent_seconds
        self._heard: dict[int, tuple[int, float]] = {}

    def silent(self, rank: int) -> bool:
        """Return whether a node's agent has given no sign for so long, as seen by this process's clock."""
        before, beat = time.monotonic(), self.meeting.last_beat(rank)
        now = time.monotonic()
        if self._heard.get(rank, (None,))[0] != beat or now - before > SLOW_SECONDS:
            self._heard[rank] = (beat, now)
        return now - self._heard[rank][1] > self.silent_seconds

    def lost(self, rank: int, pod: Json) -> bool:
        """Return whether nothing more will come from a pod that the cluster still lists.

        One that was told to go by anybody but the node controller is saving, and may be silent as long as its grace
        period lasts: the volume is busy.
        """
        if pod_state.ended(pod) or not self.silent(rank):
            return False
        if pod_state.leaving(pod) and pod_state.end_of_pod(pod) != "NODE_FAIL":
            return pod_state.overdue(pod)
        return not pod_state.ready(pod)


@dataclass
class Cluster:
    """What a world looks at besides the volume."""

    pods: Watched
    job: Watched
    """The training object alone."""
    vigil: Vigil
    check: Callable[[], None]
    """Raises SupersededError when this is not the run's supervisor any more."""
    remove: Callable[[Ticket], None]
    """Deletes the pod of a node."""


@dataclass
class Member:
    """What became of one node of the attempt."""

    ticket: Ticket
    exit_codes: list[int] | None = None
    """Of its workers; None until they have ended, and for ever when nobody saw it."""
    gone_since: float | None = None
    """Monotonic time since which its pod is no more."""
    lost: bool = False


class World:
    """One attempt's pods. `poll` returns None until every node has ended, one way or the other."""

    def __init__(self, run: RunDir, opened: Opened, cluster: Cluster) -> None:
        self.run, self.opened, self.pods = run, opened, cluster.pods
        self.meeting = Meeting(run)
        self.vigil = cluster.vigil
        self.members = [Member(ticket=ticket) for ticket in opened.tickets]
        self.returncode: int | None = None
        self.suspended_by: str | None = None
        """In SLURM's words, why the job was suspended while the pods were there; it may run again by now."""
        self._cluster = cluster
        self._looked = 0.0
        self._uneven_since: float | None = None
        self._given_up_at: float | None = None

    def poll(self) -> int | None:
        """Look at every node once a second; return 0 when all have ended as they should, 1 when all have ended."""
        if self.returncode is not None or time.monotonic() - self._looked < LOOK_SECONDS:
            return self.returncode
        self._looked = time.monotonic()
        self._cluster.check()
        self._look_at_job()
        refresh(self.run.exits(self.opened.attempt))
        self.meeting.refresh()
        pods = {pod["metadata"]["uid"]: pod for pod in self.pods.items().values()}
        for rank, member in enumerate(self.members):
            self._look(rank, member, pods.get(member.ticket.uid))
        over = [self._is_over(member) for member in self.members]
        if all(over):
            good = all(set(member.exit_codes or (1,)) <= {EXIT_DONE, EXIT_STOPPED} for member in self.members)
            self.returncode = 0 if good else 1
        elif any(over):
            self._hurry()
        self._remove_stuck()
        return self.returncode

    def _look_at_job(self) -> None:
        for job in self._cluster.job.items().values():
            if pod_state.suspended(job):
                self.suspended_by = "PREEMPTED" if pod_state.queue_of(job) is not None else "REQUEUED"

    def _look(self, rank: int, member: Member, pod: Json | None) -> None:
        if member.exit_codes is None:
            ended = evidence.report(self.run.exits(self.opened.attempt) / f"node-{rank}.json")
            member.exit_codes = ended.get("exit_codes")
        newest = self.meeting.ticket(rank)
        # Of the same pod: an agent of a pod that was replaced may come back with its node, and lay a ticket.
        restarted = newest is not None and newest.uid == member.ticket.uid and newest.ticket != member.ticket.ticket
        lost = pod is not None and self.vigil.lost(rank, pod)
        if lost and not member.lost:
            log.warning("no sign of life of node %d (%s on %s)", rank, member.ticket.pod, member.ticket.node)
        member.lost = member.lost or (lost and member.exit_codes is None)
        if pod is not None and not pod_state.ended(pod) and not restarted and not lost:
            member.gone_since = None
        elif member.gone_since is None:
            member.gone_since = time.monotonic()

    def _is_over(self, member: Member) -> bool:
        if member.exit_codes is not None or member.lost:
            return True
        return member.gone_since is not None and time.monotonic() - member.gone_since > REPORT_SECONDS

    def _hurry(self) -> None:
        """Give the attempt up when some nodes have ended badly and the others do not end."""
        bad = [
            m for m in self.members if self._is_over(m) and not set(m.exit_codes or (1,)) <= {EXIT_DONE, EXIT_STOPPED}
        ]
        if not bad:
            return
        self._uneven_since = self._uneven_since or time.monotonic()
        patience = 0.0 if any(member.lost for member in bad) else PEERS_SECONDS
        if time.monotonic() - self._uneven_since > patience and self._given_up_at is None:
            log.warning("%s ended; the others do not: ending their workers", ", ".join(m.ticket.pod for m in bad))
            self.kill()

    def _remove_stuck(self) -> None:
        """Take the nodes for lost that did not end although the attempt was given up."""
        if self._given_up_at is None or time.monotonic() - self._given_up_at < STUCK_SECONDS:
            return
        for rank, member in enumerate(self.members):
            if not self._is_over(member):
                log.warning("node %d (%s) does not end its workers: deleting it", rank, member.ticket.pod)
                self._cluster.remove(member.ticket)
                member.lost = True

    def kill(self) -> None:
        """Have every agent kill its workers."""
        self._given_up_at = self._given_up_at or time.monotonic()
        self.meeting.give_up(self.opened.attempt)

    terminate = kill

    # --- evidence
    def last_seen(self) -> list[Json]:
        """Return the objects of the attempt's pods as they were last seen."""
        return [pod for member in self.members if (pod := self.pods.last(member.ticket.uid)) is not None]

    def lost_nodes(self) -> tuple[str, ...]:
        """Return the nodes whose pods fell silent."""
        return tuple(member.ticket.node for member in self.members if member.lost)
