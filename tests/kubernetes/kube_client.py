"""A small client of an API server: requests with a token over connections that are kept, and watches."""

from __future__ import annotations

import base64
import http.client
import json
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

JSON = "application/json"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
Object = dict[str, Any]


class ApiError(Exception):
    """An answer of the server that is not a success."""

    def __init__(self, method: str, path: str, status: int, body: bytes) -> None:
        super().__init__(f"{method} {path}: {status} {body.decode(errors='replace')[:2000]}")
        self.status = status


class Client:
    """One user of one server. Threads may share it: each has a connection of its own."""

    def __init__(self, host: str, port: int, authority: str, token: str) -> None:
        self.host, self.port, self.token = host, port, token
        self.context = ssl.create_default_context(cadata=authority)
        self._local = threading.local()

    @classmethod
    def of(cls, kubeconfig: Path) -> Client:
        """Return the client that a kubeconfig of the tests describes (JSON, one cluster, one token)."""
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        host, _, port = cluster["server"].removeprefix("https://").partition(":")
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        return cls(host, int(port), authority, user["token"])

    def request(self, method: str, path: str, body: Any = None, kind: str = JSON) -> tuple[int, bytes]:
        """Send one request; return the status and the body. `body` is bytes as they are, or is written as JSON.

        Raises OSError or http.client.HTTPException if there is no answer.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kept = getattr(self._local, "connection", None)
        if kept is None or kept.sock is None or select.select([kept.sock], [], [], 0)[0]:
            kept = self.connect()  # none yet, or the server has closed it meanwhile
        self._local.connection = None
        answer = self._ask(kept, method, path, data, kind)
        self._local.connection = kept
        return answer

    def connect(self, timeout: float = 60) -> http.client.HTTPSConnection:
        """Return a connection that trusts the server's authority alone."""
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.context)

    def _ask(
        self, connection: http.client.HTTPSConnection, method: str, path: str, data: bytes | None, kind: str
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, "Accept": JSON}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def json(self, method: str, path: str, body: Any = None, kind: str = JSON) -> Object:
        """Send one request and return the object that is the answer; ApiError if it is refused."""
        status, answer = self.request(method, path, body, kind)
        if status >= 400:
            raise ApiError(method, path, status, answer)
        return cast(Object, json.loads(answer))

    def get(self, path: str) -> Object:
        """Return one object or list; ApiError if it is not there."""
        return self.json("GET", path)

    def find(self, path: str) -> Object | None:
        """Return one object, or None if it is not there."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status != http.client.NOT_FOUND:
                raise
            return None

    def watch(self, path: str, version: str) -> Iterator[Object]:
        """Yield the events of a list after that version, until the server ends it."""
        connection = self.connect()
        try:
            connection.request(
                "GET",
                f"{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}",
                headers={"Authorization": f"Bearer {self.token}", "Accept": JSON},
            )
            answer = connection.getresponse()
            if answer.status >= 400:
                raise ApiError("WATCH", path, answer.status, answer.read())
            if connection.sock is not None:
                connection.sock.settimeout(None)  # it may be quiet for long; a server that dies closes it
            while line := answer.readline():
                yield json.loads(line)
        finally:
            connection.close()


class Mirror(threading.Thread):
    """A copy of a list that follows the server's, by uid; `changed` is called after each change, in this thread."""

    def __init__(self, client: Client, path: str, changed: Callable[[], None]) -> None:
        super().__init__(name=f"mirror {path}", daemon=True)
        self.client, self.path, self.changed = client, path, changed
        self._objects: dict[str, Object] = {}
        self._lock = threading.Lock()
        self.filled = threading.Event()

    def objects(self) -> dict[str, Object]:
        """Return the objects as they were last seen."""
        with self._lock:
            return dict(self._objects)

    def run(self) -> None:
        """List, watch, and begin again whenever the watch ends or the server is away."""
        while True:
            try:
                self._follow()
            except (OSError, http.client.HTTPException, ApiError, ValueError):
                time.sleep(0.2)

    def _follow(self) -> None:
        listed = self.client.get(self.path)
        with self._lock:
            self._objects = {item["metadata"]["uid"]: item for item in listed["items"]}
        self.filled.set()
        self.changed()
        for event in self.client.watch(self.path, listed["metadata"]["resourceVersion"]):
            item, uid = event["object"], event["object"].get("metadata", {}).get("uid")
            if event["type"] == "ERROR":  # too old: list again
                return
            if event["type"] == "BOOKMARK":
                continue
            with self._lock:
                if event["type"] == "DELETED":
                    self._objects.pop(uid, None)
                else:
                    self._objects[uid] = item
            self.changed()
