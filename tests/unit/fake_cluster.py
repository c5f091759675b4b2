"""A cluster that keeps objects by path, behind the fake API server."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

from fake_api import Answer, Asked, FakeApi, Lost, refusal

from fullft_cluster.kubernetes_api import Json
from fullft_cluster.kubernetes_api.kinds import KINDS

Fault = Callable[[Asked], "Answer | Lost | None"]
PLURALS = {kind.plural for kind in KINDS.values()}


class Cluster:
    """Objects by path, as an API server keeps them; ``before`` may refuse, ``after`` may lose the answer."""

    def __init__(self, fake: FakeApi, *, uids: bool = False) -> None:
        self.uids = uids
        """Whether objects get one of their own, as from a true server; tests that compare bytes do without."""
        self._uid = 0
        self.objects: dict[str, Json] = {}
        self.made: list[str] = []
        self.before: Fault = lambda asked: None
        self.after: Fault = lambda asked: None
        self._lock = threading.Lock()
        fake.answers = [self.answer]

    def answer(self, asked: Asked) -> Answer | Lost:
        with self._lock:
            refused = self.before(asked)
            answer = refused or self._do(asked)
            return (None if refused else self.after(asked)) or answer

    def _do(self, asked: Asked) -> Answer:
        path = asked.path if asked.method != "POST" else f"{asked.path}/{asked.body['metadata']['name']}"
        there = path in self.objects
        if asked.method == "POST" and there:
            return refusal(409, "already exists", "AlreadyExists")
        if asked.headers.get("Content-Type", "").startswith("application/merge-patch"):
            if there:
                self.objects[path] = _merged(self.objects[path], asked.body)
            return Answer(200, self.objects[path]) if there else _missing(path)
        if asked.method in ("POST", "PATCH"):
            if not there:
                self.made.append(path)
            kept = self.objects.get(path, {}).get("metadata", {}).get("annotations")
            self._uid += 1
            self.objects[path] = copy.deepcopy(asked.body)
            if self.uids:
                self.objects[path]["metadata"]["uid"] = str(self._uid)
            if kept:
                self.objects[path]["metadata"].setdefault("annotations", {}).update(kept)
            return Answer(200 if there else 201, self.objects[path])
        if asked.method == "GET" and path.rpartition("/")[2] in PLURALS:
            return Answer(200, self._listed(path, asked.query.get("labelSelector", "")))
        if asked.method == "GET" and path.rpartition("/")[0] == "/api/v1/namespaces":
            return Answer(200, {"metadata": {"name": path.rpartition("/")[2]}})  # any is there
        if not there:
            return _missing(path)
        return Answer(200, self.objects.pop(path) if asked.method == "DELETE" else self.objects[path])

    def _listed(self, path: str, selector: str) -> Json:
        """What a list of a kind is, of those whose labels are as the selector says."""
        wanted = [tuple(term.split("=")) for term in selector.split(",") if term]
        found = []
        for at, obj in self.objects.items():
            labels = obj["metadata"].get("labels") or {}
            if at.rpartition("/")[0] == path and all(labels.get(key) == value for key, value in wanted):
                found.append(obj)
        kind = next(name for name, kind in KINDS.items() if kind.plural == path.rpartition("/")[2])
        version = KINDS[kind].api_version
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": found}


def _missing(path: str) -> Answer:
    return refusal(404, "not found", "NotFound", name=path.rpartition("/")[2], kind="x")


def _merged(there: Json, patch: Json) -> Json:
    """RFC 7386, for objects of objects."""
    result = dict(there)
    for key, value in patch.items():
        inner = there.get(key)
        result[key] = _merged(inner if isinstance(inner, dict) else {}, value) if isinstance(value, dict) else value
    return result
