"""The logs of a run's pods: what they said, and what they go on saying, through lost connections and new pods."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

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
PAST_SECONDS = 5.0
"""How long what was said before a follow is waited for, to be told in order; a node may be out of reach."""
INIT = frozenset({"run-directory"})
"""Our own init containers. Others, which an operator or a webhook adds (PyTorchJob's waits for the master's name), have
nothing to say of the run."""

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
        *((False, one) for one in status.get("initContainerStatuses") or () if one["name"] in INIT),
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


def in_order(past: Mapping[Log, Sequence[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """Yield the lines of several logs, each with the time at which it was written, in the order of time: (name, line).

    The lines of one log stay in theirs, also where the kubelet adds one without a time.
    """
    moments: list[tuple[float, str, str]] = []
    for log, stamped in past.items():
        latest = 0.0
        for when, line in stamped:
            latest = max(latest, seconds(when))
            moments.append((latest, log.name, line))
    for _, name, line in sorted(moments, key=lambda one: one[0]):  # a stable sort
        yield name, line


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
    """Prints what all pods of a run have said, in order, and what they say, each log by a thread of its own."""

    def __init__(self, api: Api, namespace: str, run: str, show: Print) -> None:
        self._api, self._namespace, self._run, self._print = api, namespace, run, show
        self._lock = threading.Lock()
        self._threads: dict[Log, threading.Thread] = {}
        self._seen: dict[Log, str] = {}
        """When the last line of what was said before was written."""
        self._whole: set[Log] = set()
        """Of containers that had ended: nothing is to follow."""
        self._refused: ApiError | None = None

    def follow(self, ended: Callable[[], bool], *, tail: int | None) -> None:
        """Print until the run has ended and every log has been read to its end. Raises ApiError."""
        watched = Watched(self._api, object_path("Pod", self._namespace), Names(self._run).selector).start()
        try:
            over, begun, look_again = False, False, 0.0
            while True:
                if time.monotonic() >= look_again:
                    over = ended()  # before the pods are looked at: what they said before the end is then there
                    look_again = time.monotonic() + STATUS_SECONDS
                pods = ordered(list(watched.items().values()))
                if watched.synced and not begun:
                    self._tell_past(pods, tail)
                    begun = True
                for log in (log for pod in pods for log in logs_of(pod, self._run) if begun):
                    self._begin(log, tail)
                if over and begun:
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

    def _tell_past(self, pods: list[Json], tail: int | None) -> None:
        """Print what was said before. A log that cannot be read in time is told by its own thread."""
        past: dict[Log, list[tuple[str, str]]] = {}

        def read(log: Log) -> None:
            with contextlib.suppress(ApiError):  # its thread meets the same, and says so
                past[log] = _read_stamped(self._api, self._namespace, log, tail)

        lives = {log: _runs(pod, log) for pod in pods for log in logs_of(pod, self._run)}
        threads = [threading.Thread(target=read, args=(log,), daemon=True) for log in lives]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PAST_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        read_in_time = dict(past)
        told = {log: read_in_time[log] for log in lives if log in read_in_time}
        for name, line in in_order(told):
            self._print(name, line)
        self._whole = {log for log in told if not lives[log]}
        self._seen = {log: max((when for when, _ in stamped), default="") for log, stamped in told.items()}

    def _begin(self, log: Log, tail: int | None) -> None:
        if log not in self._threads and log not in self._whole:
            thread = threading.Thread(target=self._print_all, args=(log, tail), daemon=True)
            self._threads[log] = thread
            thread.start()

    def _print_all(self, log: Log, tail: int | None) -> None:
        try:
            for line in follow_log(self._api, self._namespace, log, tail=tail, last=self._seen.get(log, "")):
                with self._lock:
                    self._print(log.name, line)
        except ApiError as error:
            self._refused = error
            with self._lock:
                self._api.report(f"{log.name}: its log cannot be followed: {error}")


def follow_log(api: Api, namespace: str, log: Log, *, tail: int | None, last: str = "") -> Iterator[str]:
    """Yield the lines of a log until its container ends; each once, also when the connection broke off meanwhile.

    ``last``: when the last line was written that is known already.

    Lines are asked for with the times at which they were written: after a break those up to the last one seen are
    passed over, since the server takes whole seconds.
    """
    import urllib3.exceptions

    path = object_path("Pod", namespace, log.pod, "log")
    pauses = Backoff(api.patience_seconds, sleep=api.sleep)
    while True:
        query: Query = {"container": log.container, "follow": True, "timestamps": True}
        seen = last
        query = {**query, "sinceTime": _whole_second(last)} if last else {**query, "tailLines": tail}
        try:
            answer = api.open(Request("GET", path, query), stream_seconds=QUIET_SECONDS)
            try:
                for raw in lines(answer):
                    when, line = _stamped(raw.decode(errors="replace"))
                    if when > seen or not when:
                        yield line
                        last, pauses = when or last, Backoff(api.patience_seconds, sleep=api.sleep)
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


def _read_stamped(api: Api, namespace: str, log: Log, tail: int | None) -> list[tuple[str, str]]:
    """Return the last lines of a log with their times; empty where the pod is gone."""
    query: Query = {"container": log.container, "tailLines": tail, "timestamps": True}
    try:
        answer = api.open(Request("GET", object_path("Pod", namespace, log.pod, "log"), query))
    except (NotFound, Invalid):
        return []
    whole = answer.data.decode(errors="replace").removesuffix("\n")
    return [_stamped(one) for one in whole.split("\n")] if whole else []


def _stamped(text: str) -> tuple[str, str]:
    """Return the time of a line and the line; no time for what the kubelet itself has to say."""
    when, _, line = text.partition(" ")
    return (when, line) if seconds(when) else ("", text)


def _whole_second(when: str) -> str:
    return when.partition(".")[0].rstrip("Z") + "Z"


def _has_ended(api: Api, namespace: str, log: Log) -> bool:
    """Return whether this life of the container is over: an end of its stream may also be a break of the connection."""
    pod = api.find(object_path("Pod", namespace, log.pod))
    return pod is None or pod["metadata"]["uid"] != log.uid or not _runs(pod, log)


def _runs(pod: Json, log: Log) -> bool:
    """Return whether this life of the container goes on."""
    return any(
        one["name"] == log.container and int(one.get("restartCount", 0)) == log.life and "running" in one["state"]
        for one in (
            *(pod["status"].get("initContainerStatuses") or ()),
            *(pod["status"].get("containerStatuses") or ()),
        )
    )
