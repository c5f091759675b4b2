"""The logs of a run's pods: what they said, and what they go on saying, through lost connections and new pods."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fullft_cluster.backends.kubernetes_objects import COMPONENT, Names
from fullft_cluster.backends.kubernetes_pods import short_name
from fullft_cluster.backends.kubernetes_view import seconds
from fullft_cluster.kubernetes_api import Api, ApiError, Json, NotFound, Watched, object_path
from fullft_cluster.kubernetes_api.backoff import Backoff
from fullft_cluster.kubernetes_api.failures import Invalid
from fullft_cluster.kubernetes_api.transport import Query, Request
from fullft_cluster.kubernetes_api.watched import lines

POLL_SECONDS = 1.0
STATUS_SECONDS = 3.0
QUIET_SECONDS = 300.0
"""A follow without a line for so long is opened anew: its connection may have died in silence."""
LAST_SECONDS = 5.0
"""How long the logs of a run that has ended are waited for."""

Print = Callable[[str, str], None]
"""Takes a log's name and a line."""


class Log(NamedTuple):
    """The log of one life of a container."""

    pod: str
    uid: str
    container: str
    life: int
    """How often it has been restarted before."""
    name: str
    """What people see: ``master-0``, ``prepare``; with the container where it is not the main one."""


def logs_of(pod: Json, run: str) -> list[Log]:
    """Return the logs that a pod has by now."""
    found, status = [], pod["status"]
    for main, one in [
        *((False, one) for one in status.get("initContainerStatuses") or ()),
        *((True, one) for one in status.get("containerStatuses") or ()),
    ]:
        state = one.get("state") or {}
        life = int(one.get("restartCount", 0))
        if not ({"running", "terminated"} & state.keys() or life):
            continue
        short = short_name(pod["metadata"]["name"], run)
        name = short if main else f"{short}/{one['name']}"
        found.append(Log(pod["metadata"]["name"], pod["metadata"]["uid"], str(one["name"]), life, name))
    return found


def read_log(api: Api, namespace: str, log: Log, *, tail: int | None, previous: bool = False) -> list[str]:
    """Return the last lines of a log. Empty where the pod is gone, or has had no container before (``previous``)."""
    query: Query = {"container": log.container, "tailLines": tail, "previous": previous}
    try:
        answer = api.open(Request("GET", object_path("Pod", namespace, log.pod, "log"), query))
    except (NotFound, Invalid):
        return []
    text: str = answer.data.decode(errors="replace")
    return text.splitlines()


def ordered(pods: list[Json]) -> list[Json]:
    """Return pods as their run goes on: preparation, supervisor, workers by rank."""
    order = {"prepare": 0, "supervisor": 1, "worker": 2}

    def key(pod: Json) -> tuple[int, float, int, str]:
        metadata = pod["metadata"]
        name = str(metadata["name"])
        part = order.get((metadata.get("labels") or {}).get(COMPONENT, ""), 3)
        return part, seconds(metadata.get("creationTimestamp")) if part < 2 else 0.0, len(name), name

    return sorted(pods, key=key)


class Follower:
    """Prints what all pods of a run say, each log by a thread of its own, new pods as they come."""

    def __init__(self, api: Api, namespace: str, run: str, show: Print) -> None:
        self._api, self._namespace, self._run, self._print = api, namespace, run, show
        self._lock = threading.Lock()
        self._threads: dict[Log, threading.Thread] = {}
        self._refused: ApiError | None = None

    def follow(self, ended: Callable[[], bool], *, tail: int | None) -> None:
        """Print until the run has ended and every log has been read to its end. Raises ApiError."""
        watched = Watched(self._api, object_path("Pod", self._namespace), Names(self._run).selector).start()
        try:
            over, look_again = False, 0.0
            while True:
                if time.monotonic() >= look_again:
                    over = ended()  # before the pods are looked at: what they said before the end is then there
                    look_again = time.monotonic() + STATUS_SECONDS
                for pod in ordered(list(watched.items().values())):
                    for log in logs_of(pod, self._run):
                        self._begin(log, tail)
                if over and watched.synced:
                    break
                refused = self._refused or watched.error
                if refused is not None and refused.status in {401, 403}:
                    raise refused
                watched.wait(POLL_SECONDS)
            deadline = time.monotonic() + LAST_SECONDS
            for thread in self._threads.values():
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            watched.stop()

    def _begin(self, log: Log, tail: int | None) -> None:
        if log not in self._threads:
            thread = threading.Thread(target=self._print_all, args=(log, tail), daemon=True)
            self._threads[log] = thread
            thread.start()

    def _print_all(self, log: Log, tail: int | None) -> None:
        try:
            for line in follow_log(self._api, self._namespace, log, tail=tail):
                with self._lock:
                    self._print(log.name, line)
        except ApiError as error:
            self._refused = error
            with self._lock:
                self._api.report(f"{log.name}: its log cannot be followed: {error}")


def follow_log(api: Api, namespace: str, log: Log, *, tail: int | None) -> Iterator[str]:
    """Yield the lines of a log until its container ends; each once, also when the connection broke off meanwhile.

    Lines are asked for with the times at which they were written: after a break those up to the last one seen are
    passed over, since the server takes whole seconds.
    """
    import urllib3.exceptions

    path = object_path("Pod", namespace, log.pod, "log")
    last, pauses = "", Backoff(api.patience_seconds, sleep=api.sleep)
    while True:
        query: Query = {"container": log.container, "follow": True, "timestamps": True}
        seen = last
        query = {**query, "sinceTime": _whole_second(last)} if last else {**query, "tailLines": tail}
        try:
            answer = api.open(Request("GET", path, query), stream_seconds=QUIET_SECONDS)
            try:
                for when, line in _stamped(answer):
                    if when > seen:
                        yield line
                        last, pauses = when, Backoff(api.patience_seconds, sleep=api.sleep)
            finally:
                answer.close()
        except NotFound:
            return  # the pod is gone, and its log with it
        except Invalid:  # "container is waiting to start": its status was ahead of its log
            if not pauses.pause():
                return
            continue
        except (urllib3.exceptions.HTTPError, OSError):
            if not pauses.pause():
                return
            continue
        if _has_ended(api, namespace, log) or not pauses.pause():
            return


def _stamped(answer: Any) -> Iterator[tuple[str, str]]:
    for raw in lines(answer):
        when, _, line = raw.decode(errors="replace").partition(" ")
        yield when, line


def _whole_second(when: str) -> str:
    return when.partition(".")[0].rstrip("Z") + "Z"


def _has_ended(api: Api, namespace: str, log: Log) -> bool:
    """Return whether this life of the container is over: an end of its stream may also be a break of the connection."""
    pod = api.find(object_path("Pod", namespace, log.pod))
    if pod is None or pod["metadata"]["uid"] != log.uid:
        return True
    return not any(
        one["name"] == log.container and int(one.get("restartCount", 0)) == log.life and "running" in one["state"]
        for one in (
            *(pod["status"].get("initContainerStatuses") or ()),
            *(pod["status"].get("containerStatuses") or ()),
        )
    )
