"""Where attempts run on Kubernetes: pods that a controller keeps there, seen by the API and on the shared volume."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path

from fullft_cluster.errors import FullftError, Problem, RunFailedError, SchedulerError
from fullft_cluster.kubernetes_api import Api, ApiError, Json, Watched, object_path
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime import evidence, pod_state
from fullft_cluster.runtime.kubernetes_target import KINDS, Target, exclude, job_or_none, release, set_suspended
from fullft_cluster.runtime.meeting import Meeting, Opened, Ticket
from fullft_cluster.runtime.platform import Child, SupersededError
from fullft_cluster.runtime.policy import Decision
from fullft_cluster.runtime.world import Cluster, Vigil, World

POLL_SECONDS = 1.0
JOB_SECONDS = 2.0
"""Between two looks at the training object while pods are waited for."""

log = logging.getLogger("supervisor")


class KubernetesPlatform:
    """In a pod of its own, without a GPU, beside the training pods."""

    def __init__(self, run: RunDir, target: Target, api: Api) -> None:
        self.run, self.target, self.api = run, target, api
        self.plan = Plan.from_json(run.plan.read_bytes())
        self.meeting = Meeting(run)
        self.meeting.make()
        self.cluster = Cluster(
            pods=Watched(api, target.pods_path, target.pods_selector).start(),
            job=Watched(api, target.kind_path, field_selector=f"metadata.name={target.name}").start(),
            vigil=Vigil(self.meeting),
            check=self.check,
            remove=self._remove,
        )
        self.pods = self.cluster.pods
        self.world: World | None = None
        self._tickets: tuple[Ticket, ...] = ()
        self._excluded: set[str] = set()
        self._job_seen = False
        self._identity = uuid.uuid4().hex
        write_json(self._badge, {"id": self._identity, "time": time.time()})

    @property
    def _badge(self) -> Path:
        return self.meeting.directory / "supervisor.json"

    def check(self) -> None:
        """Raise SupersededError when a newer supervisor has taken over: this one's node was cut off."""
        found = evidence.report(self._badge).get("id")
        if found is not None and found != self._identity:  # one that cannot be read just now says nothing
            raise SupersededError("another supervisor of this run has taken over")

    # --- the next attempt
    def nodes(self) -> tuple[str, ...]:
        """Wait until every node offers itself, and return their names; none when the run is cancelled.

        Raises RunFailedError when the training object or the data preparation has failed.
        """
        looked = 0.0
        log.info("waiting for the pods of %d nodes", self.plan.nodes)
        while self.run.stop_reason() != "cancelled":
            self.check()
            self._release_lost()
            self._resume_if_left()
            tickets = self._present()
            if tickets is not None and self._where_wanted(tickets):
                self._tickets = tickets
                return tuple(ticket.node for ticket in tickets)
            if time.monotonic() - looked > JOB_SECONDS:
                looked = time.monotonic()
                self._look_at_job()
            self.pods.wait(POLL_SECONDS)
        return ()

    def _present(self) -> tuple[Ticket, ...] | None:
        """Return a new ticket of every node whose pod is there; None while one is missing."""
        opened = self.meeting.opened()
        used = opened.tickets if opened else ()
        live = {pod["metadata"]["uid"]: pod for pod in self.pods.items().values()}
        found = []
        for rank in range(self.plan.nodes):
            ticket = self.meeting.ticket(rank)
            pod = live.get(ticket.uid) if ticket is not None else None
            if ticket is None or pod is None or ticket in used or pod_state.leaving(pod) or pod_state.ended(pod):
                return None
            found.append(ticket)
        return tuple(found)

    def _where_wanted(self, tickets: tuple[Ticket, ...]) -> bool:
        """Return whether no pod is on an excluded node; if one is, have it made anew elsewhere, once."""
        bad = {ticket.node for ticket in tickets} & set(self.run.read_run().get("excluded_nodes", ()))
        if not bad - self._excluded:
            return True
        self._excluded |= bad
        try:
            exclude(self.api, self.target, self.pods, self.run.read_run()["excluded_nodes"], self._suspended)
        except FullftError as error:
            log.warning("could not exclude %s, so it is used again: %s", ", ".join(sorted(bad)), error)
        return False

    @property
    def _suspended(self) -> Path:
        """Return the file that is there while the training object is suspended by us."""
        return self.meeting.directory / "suspended.json"

    def _resume_if_left(self) -> None:
        """Resume the training object where that was not done: the API server or this supervisor's node went away."""
        if not self._suspended.exists():
            return
        try:
            set_suspended(self.api, self.target, suspended=False)
        except ApiError as error:
            log.warning("could not resume the pods: %s", error)
        else:
            self._suspended.unlink(missing_ok=True)

    def _release_lost(self) -> None:
        """Release the pods of dead nodes, which would be `Terminating` for ever."""
        by_uid = {ticket.uid: rank for rank in range(self.plan.nodes) if (ticket := self.meeting.ticket(rank))}
        for pod in self.pods.items().values():
            rank = by_uid.get(pod["metadata"]["uid"])
            dead = pod_state.overdue(pod) or (rank is not None and self.cluster.vigil.lost(rank, pod))
            if pod_state.leaving(pod) and dead:
                try:
                    release(self.api, self.target, pod)
                except ApiError as error:
                    log.warning("could not release pod %s: %s", pod["metadata"]["name"], error)

    def _remove(self, ticket: Ticket) -> None:
        """Delete the pod of a node that does not end its workers."""
        path = object_path("Pod", self.target.namespace, ticket.pod)
        try:
            self.api.delete(path, uid=ticket.uid)
        except ApiError as error:
            log.warning("could not delete pod %s: %s", ticket.pod, error)

    def _look_at_job(self) -> None:
        """Raise RunFailedError when no pods will come any more; a training object that was deleted is a cancel."""
        if not self.run.data.is_file():
            check_preparation(self.api, self.target, self.run)
        job = job_or_none(self.api, self.target)
        if job is None:
            if self._job_seen:
                log.warning("the %s is gone: somebody deleted it", KINDS[self.target.kind])
                write_json(self.run.stop, {"reason": "cancelled", "time": time.time()})
            return
        self._job_seen = self._job_seen or bool(job)
        if self.run.data.is_file():
            if self.run.read_run().get("state") == "preparing":
                self.run.update_run(state="pending", reason="waiting for the pods")
            if job:
                self._begin(job)
        if end := pod_state.end_of_job(job):
            fix = "`fullft-cluster resume` goes on from the newest checkpoint."
            raise RunFailedError(Problem(f"{KINDS[self.target.kind]} {self.target.name}", f"is over: {end[1]}", fix))

    def _begin(self, job: Json) -> None:
        """Resume a training object that was made suspended, so that no GPU waits for the data; each object once.

        One that people suspend later stays so, and a queue resumes its own.
        """
        uid, begun = job["metadata"]["uid"], self.meeting.directory / "begun.json"
        if evidence.report(begun).get("uid") == uid:
            return
        if pod_state.suspended(job) and pod_state.queue_of(job) is None:
            log.info("the data is prepared: starting the pods")
            set_suspended(self.api, self.target, suspended=False)
        write_json(begun, {"uid": uid})

    # --- the attempt
    def start(self, run: RunDir, attempt: int) -> Child:
        """Open the attempt: the pods see it and start their workers."""
        opened = Opened(attempt=attempt, tickets=self._tickets)
        self.meeting.open(attempt, self._tickets)
        self.world = World(run, opened, self.cluster)
        return self.world

    def running(self, run: RunDir, attempt: int) -> Child | None:
        """Return the attempt's pods where a supervisor before this one has opened it, to go on watching."""
        opened = self.meeting.opened()
        if opened is None or opened.attempt != attempt:
            return None
        if not self.pods.wait_synced(60):
            raise SchedulerError("the API server does not say which pods there are")  # else all would seem to be gone
        self.world = World(run, opened, self.cluster)
        return self.world

    def began(self, run: RunDir, attempt: int) -> bool:
        """Return whether an attempt was opened; a supervisor may have ended a moment before."""
        opened = self.meeting.opened()
        return opened is not None and opened.attempt >= attempt

    def kill(self, child: Child) -> None:
        """Have every agent kill its workers."""
        child.kill()

    def why(self, signum: int, lead_seconds: int) -> str:
        """Nobody sends the supervisor a signal that means the workers."""
        return "terminated"

    def life_state(self) -> str | None:
        """Return what ended the pods, in SLURM's words: their own conditions, else a suspended job."""
        if self.world is None:
            return None
        words = pod_state.end_of_world(self._last_words(self.world))
        return words or self.world.suspended_by

    def _last_words(self, world: World) -> list[Json]:
        """Return the attempt's pods: as the server has them now, else as the watch saw them last."""
        try:
            now = self.api.list(self.target.pods_path, self.target.pods_selector)
        except ApiError as error:
            log.warning("%s", error)
            now = []
        seen = {pod["metadata"]["uid"]: pod for pod in [*world.last_seen(), *now]}
        return [seen[ticket.uid] for ticket in world.opened.tickets if ticket.uid in seen]

    def past_life_state(self) -> str | None:
        """Nothing is known of pods that are gone."""
        return None

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the nodes whose pods fell silent, or were taken off a node that was lost."""
        return () if self.world is None else tuple(node for node in nodes if node in self.world.lost_nodes())

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        """Go on in this process: the agents read in run.json that another attempt follows."""
        return True


def _preparation(api: Api, target: Target) -> Json:
    """Return the Job that prepares the data; empty when there is none (any more), or while nobody answers."""
    try:
        return api.find(object_path("Job", target.namespace, f"{target.name}-prepare")) or {}
    except ApiError as error:
        log.warning("%s", error)
        return {}


def being_prepared(api: Api, target: Target) -> bool:
    """Return whether the data is being prepared now, so that what the run directory says may be of a time before."""
    job = _preparation(api, target)
    return bool(job) and pod_state.end_of_job(job) is None


def check_preparation(api: Api, target: Target, run: RunDir) -> None:
    """Raise RunFailedError, with what it found, when the Job that prepares the data has failed for good."""
    end = pod_state.end_of_job(_preparation(api, target))
    if end is not None and end[0] == "failed":
        report = evidence.report(run.prepare_report)
        if report.get("exit_code") == 2 and report.get("errors"):
            raise RunFailedError([Problem("data preparation", str(error)) for error in report["errors"]])
        fix = f"Look at `kubectl logs job/{target.name}-prepare --all-containers`."
        raise RunFailedError(Problem("data preparation", f"job {target.name}-prepare has failed: {end[1]}", fix))
