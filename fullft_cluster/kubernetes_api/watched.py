"""Lists and watches: what is there now, and what changes, through lost connections and versions that are too old."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fullft_cluster.kubernetes_api.api import Api, Json
from fullft_cluster.kubernetes_api.backoff import Backoff
from fullft_cluster.kubernetes_api.failures import ApiError, Gone, failure
from fullft_cluster.kubernetes_api.transport import Query, Request

REMEMBERED = 256
"""Of objects that are gone: their last words are asked for within seconds."""

WATCH_SECONDS = 60
"""How long one watch lasts before another goes on from where it ended: a connection that died in silence (a NAT, a
load balancer) is noticed within it."""


SHORT_SECONDS = 1.0
"""A watch that is ended sooner is not begun anew at once: it is ended by something between here and the server."""


class Event(NamedTuple):
    """What a watch tells."""

    type: str
    """ADDED, MODIFIED, DELETED: one object. LIST, first and after a gap: all of them. LOST: the connection broke off,
    FOUND: there is one again."""
    objects: list[Json]


class _Ended(Exception):
    """The connection of a watch is over, as each is some day."""


def watch(
    api: Api,
    path: str,
    label_selector: str | None = None,
    field_selector: str | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    patience_seconds: float | None = None,
) -> Iterator[Event]:
    """Yield the list of objects and then their changes, until ``stopped()`` (asked at least once a minute).

    The server is allowed to be away for ``patience_seconds`` in all (None: the Api's own patience), then ApiError.
    """
    version: str | None = None
    patience = Backoff(patience_seconds or api.patience_seconds, sleep=api.sleep)
    while not stopped():
        if version is None:
            items, version = api.list_version(path, label_selector, field_selector)
            yield Event("LIST", items)
        began = time.monotonic()
        try:
            for kind, obj in _changes(api, path, label_selector, field_selector, version):
                version = str(obj.get("metadata", {}).get("resourceVersion") or version)
                patience = Backoff(patience_seconds or api.patience_seconds, sleep=api.sleep)
                if kind == "FOUND":
                    yield Event(kind, [])
                elif kind != "BOOKMARK":
                    yield Event(kind, [obj])
                if stopped():
                    return
            if time.monotonic() - began < SHORT_SECONDS:
                api.sleep(SHORT_SECONDS)
        except Gone:
            version = None
            api.sleep(0.2)
        except _Ended as error:
            yield Event("LOST", [])
            if not patience.pause():
                raise api.unreachable(error.__cause__ or error) from None


def _changes(
    api: Api, path: str, label_selector: str | None, field_selector: str | None, version: str
) -> Iterator[tuple[str, Json]]:
    """Yield the changes that one connection brings. Raises Gone, _Ended for a connection that broke off."""
    import urllib3.exceptions

    query: Query = {
        "watch": True,
        "allowWatchBookmarks": True,
        "resourceVersion": version,
        "timeoutSeconds": WATCH_SECONDS,
        "labelSelector": label_selector,
        "fieldSelector": field_selector,
    }
    answer = api.open(Request("GET", path, query), stream_seconds=WATCH_SECONDS + 30.0)
    try:
        yield "FOUND", {}
        for line in lines(answer):
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise failure(int(status.get("code") or 500), status, "GET", path, api.host)
            yield str(event["type"]), event["object"]
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # ValueError: half a line, then the end
        raise _Ended from error
    except ApiError as error:
        if error.status >= 500:
            raise _Ended from error
        raise
    finally:
        answer.close()  # not given back to the pool: it may still be written to


def lines(answer: Any) -> Iterator[bytes]:
    """Yield the lines of a streamed answer, without their ends."""
    rest = b""
    for piece in answer.stream(65536, decode_content=True):
        whole = (rest + piece).split(b"\n")
        rest = whole.pop()
        yield from (line for line in whole if line)
    if rest:
        yield rest


class Watched:
    """Objects of a path, kept up to date by a thread. ``start()`` it, look at ``items()``, ``stop()`` it.

    While the server is away the last state stays, and ``lost_seconds`` says for how long.
    """

    def __init__(
        self, api: Api, path: str, label_selector: str | None = None, *, field_selector: str | None = None
    ) -> None:
        self._api, self._path, self._selector, self._fields = api, path, label_selector, field_selector
        self._items: dict[str, Json] = {}
        self._gone: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._changes, self._seen = 0, 0
        self._lost_since: float | None = None
        self._synced = False
        self.error: ApiError | None = None
        """The last refusal (a permission taken away, say); None once it goes on. The thread goes on trying."""
        self._thread = threading.Thread(target=self._run, name=f"watch {path}", daemon=True)

    def start(self) -> Watched:
        """Start the thread; returns at once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ask the thread to end; it does at the next event, within a minute, or with the process."""
        self._stopping.set()

    @property
    def synced(self) -> bool:
        """Return whether the list has been read at least once."""
        return self._synced

    @property
    def lost_seconds(self) -> float:
        """Return for how long the server has not been heard; 0 while all is well."""
        since = self._lost_since
        return 0.0 if since is None else time.monotonic() - since

    def items(self) -> dict[str, Json]:
        """Return the objects by name, as they are now. They are not to be changed."""
        with self._lock:
            self._seen = self._changes
            return dict(self._items)

    def last(self, uid: str) -> Json | None:
        """Return an object by its uid as it was seen last, which may be gone by now; None when it is not known."""
        with self._lock:
            now = (obj for obj in self._items.values() if obj["metadata"]["uid"] == uid)
            return next(now, None) or self._gone.get(uid)

    def _forget(self, obj: Json | None) -> None:
        if obj is not None:
            self._gone[obj["metadata"]["uid"]] = obj
            while len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]

    def wait(self, seconds: float) -> bool:
        """Wait for a change since `items` was last called, for at most so long; return whether there was one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._changes != self._seen, seconds)

    def wait_synced(self, seconds: float) -> bool:
        """Wait until the list has been read; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._synced, seconds)

    def _run(self) -> None:
        pauses = Backoff(None, sleep=self._sleep)
        while not self._stopping.is_set():
            try:
                for event in watch(self._api, self._path, self._selector, self._fields, stopped=self._stopping.is_set):
                    self._take(event)
                    pauses = Backoff(None, sleep=self._sleep)
            except ApiError as error:
                self.error = error
                self._lost_since = self._lost_since or time.monotonic()
                pauses.pause()

    def _sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _take(self, event: Event) -> None:
        with self._changed:
            if event.type == "LOST":
                self._lost_since = self._lost_since or time.monotonic()
                return
            if event.type == "LIST":
                there = {obj["metadata"]["uid"] for obj in event.objects}
                for obj in self._items.values():
                    if obj["metadata"]["uid"] not in there:
                        self._forget(obj)
                self._items = {obj["metadata"]["name"]: obj for obj in event.objects}
                self._synced = True
            for obj in event.objects if event.type in ("ADDED", "MODIFIED", "DELETED") else ():
                name = obj["metadata"]["name"]
                if event.type == "DELETED":
                    self._forget(obj)
                    self._items.pop(name, None)
                else:
                    self._items[name] = obj
            self.error, self._lost_since = None, None
            if event.type == "FOUND":
                return
            self._changes += 1
            self._changed.notify_all()
