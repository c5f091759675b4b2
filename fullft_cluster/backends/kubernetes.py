"""A Kubernetes cluster: submits manifests, and looks after a run by its objects, from a machine without its volume."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from fullft_cluster.backends import Submission
from fullft_cluster.backends.kubernetes_jobs import end_of
from fullft_cluster.backends.kubernetes_logs import Follower, Print, logs_of, ordered, read_log
from fullft_cluster.backends.kubernetes_objects import Names, documents, path_of, words_of
from fullft_cluster.backends.kubernetes_preflight import judged_by_server, preflight
from fullft_cluster.backends.kubernetes_removal import (
    CLAIM,
    GONE_SECONDS,
    claims_of,
    objects_of,
    pods_of,
    wait_until_gone,
)
from fullft_cluster.backends.kubernetes_status import is_running, kubernetes_status
from fullft_cluster.backends.kubernetes_submit import make_all
from fullft_cluster.backends.kubernetes_view import View, read_view, read_views, run_names
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, RunFailedError, UsageError
from fullft_cluster.kubernetes_api import Api, Forbidden, Json, NotFound, object_path
from fullft_cluster.kubernetes_names import is_label_value
from fullft_cluster.status import ENDED, Status

STOPPING = "It was asked to stop: wait until `status` says cancelled."

Say = Callable[[str], None]


class KubernetesBackend:
    """The runs of one namespace of one cluster. Methods raise ApiError; `read_view` says when there is no such run."""

    def __init__(self, api: Api, namespace: str | None = None, context: str | None = None) -> None:
        """``context``: of the kubeconfig, where the user gave one."""
        self.api = api
        self.namespace = namespace or api.namespace
        self.context = context

    @property
    def flags(self) -> str:
        """Return the options that lead another command to the same place."""
        context = "" if self.context is None else f" --context {shlex.quote(self.context)}"
        return f"--backend kubernetes{context} --namespace {shlex.quote(self.namespace)}"

    # --- to submit
    def names(self) -> set[str]:
        """Return the names of the runs that are there."""
        return run_names(self.api, self.namespace)

    def check(self, manifests: Sequence[str], config: Config, nodes: int, say: Say) -> tuple[list[Json], list[Json]]:
        """Return the objects of manifests, and those that the server has judged, once nothing is in their way.

        Raises FullftError with every problem.
        """
        objects = documents(manifests)
        found = preflight(self.api, objects, config.kubernetes, nodes)
        for note in found.notes:
            say(note)
        found.check()
        return objects, judged_by_server(self.api, objects)

    def submit(self, name: str, objects: Sequence[Json], config: Config, say: Say) -> Submission:
        """Make the objects of a run, all or none."""
        make_all(self.api, objects, name, say)
        return self._submission(name, config)

    def _submission(self, name: str, config: Config | None) -> Submission:
        kind = config.kubernetes.kind if config else "job"
        run_dir = f"{config.output.runs_dir}/{name}" if config else ""
        prepare = f"job/{Names(name).prepare}"
        return Submission(name, run_dir, "kubernetes", job_id=f"{kind}/{name}", prepare_job_id=prepare)

    # --- to look
    def view(self, name: str) -> View:
        """Return a run's objects. Raises UsageError when there is none of that name."""
        return read_view(self.api, self.namespace, name)

    def status(self, name: str) -> Status:
        """Return what a run is doing."""
        return kubernetes_status(self.view(name))

    def statuses(self) -> list[Status]:
        """Return what all runs of the namespace are doing, newest first."""
        return [kubernetes_status(view) for view in read_views(self.api, self.namespace)]

    def logs(self, name: str, *, tail: int, previous: bool) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the last lines of each pod's logs, as the run goes on."""
        for pod in ordered(self.view(name).pods):
            for log in logs_of(pod, name):
                if log.life or not previous:
                    yield log.name, read_log(self.api, self.namespace, log, tail=tail, previous=previous)

    def follow(self, name: str, show: Print, *, tail: int) -> None:
        """Print what the pods say until the run has ended."""
        self.view(name)  # says when there is no such run
        Follower(self.api, self.namespace, name, show).follow(lambda: self.status(name).state in ENDED, tail=tail)

    # --- to end and to go on
    def cancel(self, name: str, *, now: bool) -> str:
        """Ask for a checkpoint and an end; take away what has not begun. Returns a sentence on what was done."""
        view = self.view(name)
        status = kubernetes_status(view)
        began = status.attempt > 0 or any(pod["status"].get("phase") == "Running" for pod in view.of("worker"))
        self._ask(view, "cancel")
        if began and not now:
            return "asked for a checkpoint and a stop"
        if view.training is not None:
            self.api.delete(path_of(view.training), propagation="Background")
        if now:
            for pod in view.of("worker"):  # at once, without the time for a checkpoint
                with contextlib.suppress(Forbidden):  # then they go with their owner, as slowly as they like
                    self.api.delete(path_of(pod), grace_seconds=1)
        alive = any(is_running(pod) for pod in view.of("supervisor"))
        for job in (view.prepare, None if alive else view.supervisor):  # one that is alive ends by itself
            if job is not None and end_of(job)[0] is None:
                self.api.delete(path_of(job), propagation="Background")
        gone = "no object" if view.training is None else words_of(view.training)
        return f"deleted {gone}" + ("" if began else ", which had not begun")

    def resume(self, name: str, say: Say) -> Submission:
        """Start a run that has ended again, from its newest checkpoint.

        Raises UsageError while it waits or runs, and when it cannot be started from what its ConfigMap holds.
        """
        view = self.view(name)
        status = kubernetes_status(view)
        if status.state == "completed":
            raise UsageError(Problem(name, "is completed", "Submit a new run to train further."))
        lost = view.supervisor is None or end_of(view.supervisor)[0] is not None
        if status.state not in ENDED and not lost:
            fix = STOPPING if _is_stopping(view) else "Cancel it first."
            raise UsageError(Problem(name, f"waits or runs in the cluster ({status.state})", fix))
        objects = self._again(view, status)
        for old in self._to_replace(view, objects):
            self.api.delete(path_of(old), propagation="Foreground")
        if left := wait_until_gone(self.api, self._to_replace(view, objects)):
            words = ", ".join(words_of(obj) for obj in left)
            fix = "Look at its pods and their nodes, then resume again."
            raise RunFailedError(Problem(name, f"{words} was deleted, and has not gone in {GONE_SECONDS:.0f} s", fix))
        self._ask(self.view(name), "resume")
        for obj in objects:
            self.api.apply(obj)
            say(f"{words_of(obj)} made")
        return self._submission(name, view.config)

    def _again(self, view: View, status: Status) -> list[Json]:
        """Return the objects that a resume makes: the supervisor, the training unless it still runs, and the data
        preparation where it has failed, or is not there and the run has not begun.
        """
        parts = ["supervisor.yaml"] + (["job.yaml"] if status.state in ENDED else [])
        if self._to_prepare(view, began=status.attempt > 0 or bool(view.attempts)):
            parts.insert(0, "prepare.yaml")
        missing = [part for part in parts if part not in view.files]
        if missing:
            what = f"its ConfigMap {view.names.files} has no {' and no '.join(missing)}"
            raise UsageError(Problem(view.name, what, "Apply what `render -o DIR` wrote, by kubectl."))
        return documents(view.files[part] for part in parts)

    @staticmethod
    def _to_prepare(view: View, *, began: bool) -> bool:
        """Return whether the data has to be prepared (again); an attempt opens only after that is done."""
        if view.prepare is None or view.prepare["metadata"].get("deletionTimestamp"):
            return not began
        return end_of(view.prepare)[0] == "failed"

    @staticmethod
    def _to_replace(view: View, objects: Sequence[Json]) -> list[Json]:
        """Return the ended objects in the way of new ones of the same name."""
        new = {(obj["kind"], obj["metadata"]["name"]) for obj in objects}
        old = [job for job in (view.training, view.supervisor, view.prepare) if job is not None]
        return [job for job in old if (job["kind"], job["metadata"]["name"]) in new]

    def _ask(self, view: View, action: str) -> None:
        """Write a request into NAME-state, for the supervisor to read."""
        request = json.dumps({"id": str(uuid.uuid4()), "action": action, "time": time.time()})
        try:
            self.api.merge_patch(
                object_path("ConfigMap", self.namespace, view.names.state), {"data": {"request": request}}
            )
        except NotFound:
            what = f"its ConfigMap {view.names.state}, by which its supervisor is asked, is not there"
            fix = f"Delete the run: `fullft-cluster delete {view.name} {self.flags} --now`."
            raise RunFailedError(Problem(view.name, what, fix)) from None

    # --- to remove
    def delete(self, name: str, *, now: bool, storage: bool, say: Say) -> list[str]:
        """Delete a run's objects; its own claim, with the checkpoints, only with ``storage``. Returns what went.

        What an earlier delete has left of a run is found without its ConfigMaps. Raises UsageError while the run is
        alive, unless ``now``, and when there is nothing (else) of that name.
        """
        unknown, view = None, None
        try:
            view = self.view(name)
        except UsageError as error:
            if not is_label_value(name):
                raise
            unknown = error
        if view is not None and not now:
            self._refuse_alive(view)
        found = list(objects_of(self.api, self.namespace, name, storage=storage))
        kept = [] if storage else claims_of(self.api, self.namespace, name)
        if unknown is not None and not found:
            raise UsageError(self._only_claims(name, kept)) if kept else unknown
        for obj in found:
            self.api.delete(path_of(obj), propagation="Background")
            say(f"{words_of(obj)} deleted")
        pods = [pod for pod in pods_of(self.api, self.namespace, name) if pod["metadata"].get("ownerReferences")]
        left = wait_until_gone(self.api, [*found, *pods])
        if left:
            say(f"still stopping: {', '.join(words_of(obj) for obj in left)}")
        for words in self._what_stays(view, name, found, kept):
            say(words)
        return [words_of(obj) for obj in found]

    def _what_stays(self, view: View | None, name: str, found: Sequence[Json], kept: Sequence[Json]) -> Iterator[str]:
        """Yield where the checkpoints are that a delete has left, and how they are deleted."""
        run_dir = kubernetes_status(view).run_dir if view is not None else ""
        if run_dir and not any(obj["kind"] == CLAIM for obj in found):
            yield f"the run directory {run_dir} stays on its volume, with every checkpoint and the export"
        if kept:
            yield self._only_claims(name, kept).fix

    def _refuse_alive(self, view: View) -> None:
        """Raise UsageError while a run has not ended."""
        status = kubernetes_status(view)
        if status.state in ENDED:
            return
        first = f"`fullft-cluster cancel {view.name} {self.flags}` makes a checkpoint first."
        fix = f"{STOPPING if _is_stopping(view) else first} `delete --now` deletes it without a checkpoint."
        raise UsageError(Problem(view.name, f"is {status.state}", fix))

    def _only_claims(self, name: str, claims: Sequence[Json]) -> Problem:
        """Return what to say of claims that stay."""
        words = ", ".join(words_of(claim) for claim in claims)
        fix = f"`fullft-cluster delete {name} {self.flags} --storage` deletes {words}, with every checkpoint."
        return Problem(name, f"is deleted, but for {words}, which holds its run directory", fix)


def _is_stopping(view: View) -> bool:
    """Return whether the last that a run was asked for is to stop, heard by its supervisor or not yet."""
    return bool(view.json("request").get("action") == "cancel")
