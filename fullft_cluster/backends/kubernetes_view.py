"""A run as the API server has it: its objects, read at one time."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec

from fullft_cluster.backends.kubernetes_jobs import end_of
from fullft_cluster.backends.kubernetes_objects import COMPONENT, INSTANCE, MANAGED, Names, makers
from fullft_cluster.backends.kubernetes_references import doubt, find_namespace
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.kubernetes_api import Api, ApiError, Forbidden, Json, NotFound, object_path
from fullft_cluster.kubernetes_names import is_label_name
from fullft_cluster.runtime.kubernetes_target import KINDS
from fullft_cluster.runtime.pod_state import queue_of


@dataclass
class View:
    """One run. What could not be read, or is not there, is None or empty."""

    name: str
    namespace: str
    files: dict[str, str] = field(default_factory=dict)
    """Of the ConfigMap NAME-files."""
    state: dict[str, str] = field(default_factory=dict)
    """Of the ConfigMap NAME-state."""
    state_time: float | None = None
    """When that was last written, unix seconds of the server's clock."""
    created: float = 0.0
    training: Json | None = None
    prepare: Json | None = None
    supervisor: Json | None = None
    pods: list[Json] = field(default_factory=list)
    warnings: list[Json] = field(default_factory=list)
    """Events of type Warning about these objects and pods; read only where something is not well."""
    workloads: list[Json] = field(default_factory=list)
    """Kueue's, of the namespace; read only where a job is in a queue."""

    @property
    def names(self) -> Names:
        """Return what its objects are called."""
        return Names(self.name)

    @property
    def config(self) -> Config | None:
        """Return the run's configuration, None where it cannot be read (of another version, say)."""
        try:
            return msgspec.yaml.decode(self.files["config.yaml"].encode(), type=Config)
        except (KeyError, msgspec.MsgspecError):
            return None

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON object of the state; empty where there is none."""
        try:
            value = json.loads(self.state[name])
        except (KeyError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Return the lines of attempts.jsonl."""
        found = []
        for line in self.state.get("attempts.jsonl", "").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [one for one in found if isinstance(one, dict)]

    def of(self, component: str) -> list[Json]:
        """Return the pods of a part of the run."""
        return [pod for pod in self.pods if (pod["metadata"].get("labels") or {}).get(COMPONENT) == component]


def read_view(api: Api, namespace: str, name: str) -> View:
    """Return a run. Raises UsageError when there is none of that name, no such namespace, and for what is no name."""
    check_run_name(api, namespace, name)
    found = _read(api, namespace, f"{MANAGED},{INSTANCE}={name}")
    if name not in found:
        find_namespace(api, namespace)  # a list in one that is not there is empty, no error
        known = ", ".join(sorted(_read_names(api, namespace))[:20]) or "none"
        what = f"no such run in namespace {namespace} of {api.context or 'this cluster'} (there: {known})"
        raise UsageError(
            Problem(name, what, "Give --namespace or --context, or a name of `list --backend kubernetes`.")
        )
    return _with_details(_Details(api, namespace), found[name])


def check_run_name(api: Api, namespace: str, name: str) -> None:
    """Raise UsageError for what cannot be a run's name, such as a path: it would be part of a selector of labels."""
    if is_label_name(name):
        return
    parts = [part for part in name.split("/") if is_label_name(part)]
    with contextlib.suppress(ApiError):
        known = _read_names(api, namespace)
        parts = [part for part in parts if part in known] or parts
    fix = f"Write {parts[-1]}." if parts else "Write a name of `list --backend kubernetes`."
    raise UsageError(Problem(repr(name), "is not a run name", fix))


def read_views(api: Api, namespace: str) -> list[View]:
    """Return all runs of a namespace, newest first. Raises UsageError when there is no such namespace."""
    details = _Details(api, namespace)
    found = [_with_details(details, view) for view in _read(api, namespace, MANAGED).values()]
    if not found:
        find_namespace(api, namespace)
    return sorted(found, key=lambda view: view.created, reverse=True)


def _read_names(api: Api, namespace: str) -> set[str]:
    maps = api.list(object_path("ConfigMap", namespace), MANAGED)
    return {str((one["metadata"].get("labels") or {}).get(INSTANCE, "")) for one in maps} - {""}


run_names = _read_names


def _read(api: Api, namespace: str, selector: str) -> dict[str, View]:
    """Return the runs that a selector of labels finds, by name. Raises ApiError; Forbidden asks for the namespace."""
    try:
        return _read_all(api, namespace, selector)
    except Forbidden as error:
        (problem,) = error.problems
        if find_namespace(api, namespace) is None:
            problem = replace(problem, fix=problem.fix + doubt(namespace))
        raise Forbidden(problem, words=error.words, reason=error.reason, status=error.status) from None


def _read_all(api: Api, namespace: str, selector: str) -> dict[str, View]:
    views: dict[str, View] = {}

    def view(obj: Json) -> View | None:
        name = str((obj["metadata"].get("labels") or {}).get(INSTANCE, ""))
        return views.setdefault(name, View(name, namespace)) if name else None

    for one in api.list(object_path("ConfigMap", namespace), selector):
        if (run := view(one)) is not None:
            _take_map(run, one)
    for one in api.list(object_path("Job", namespace), selector):
        if (run := view(one)) is not None:
            _take_job(run, one)
    wanted: set[str] = set()
    for run in views.values():  # one whose configuration is of another version may be of any kind
        wanted |= {KINDS[run.config.kubernetes.kind]} if run.config is not None else set(KINDS.values())
    for kind in sorted(wanted - {"Job"}):
        with contextlib.suppress(NotFound):  # the operator was taken away
            for one in api.list(object_path(kind, namespace), selector):
                if (run := view(one)) is not None:
                    run.training = one
    for one in api.list(object_path("Pod", namespace), selector):
        if (run := view(one)) is not None:
            run.pods.append(one)
    return views


def _take_map(run: View, one: Json) -> None:
    name, data = one["metadata"]["name"], one.get("data") or {}
    if name == run.names.files:
        run.files, run.created = data, seconds(one["metadata"].get("creationTimestamp"))
    elif name == run.names.state:
        run.state = data
        times = [seconds(entry.get("time")) for entry in one["metadata"].get("managedFields") or ()]
        run.state_time = max(times, default=None)


def _take_job(run: View, one: Json) -> None:
    name = one["metadata"]["name"]
    if name == run.names.prepare:
        run.prepare = one
    elif name == run.names.supervisor:
        run.supervisor = one
    elif name == run.name:
        run.training = one


class _Details:
    """What says more about what is not well, read once for all runs. It may be forbidden, and is done without."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace

    @cached_property
    def warnings(self) -> list[Json]:
        try:
            return self._api.list(object_path("Event", self._namespace), field_selector="type=Warning")
        except Forbidden:
            return []

    @cached_property
    def workloads(self) -> list[Json]:
        try:
            return self._api.list(object_path(self._api.kind("Workload"), self._namespace))
        except (Forbidden, NotFound):
            return []


def _with_details(details: _Details, view: View) -> View:
    """Return the run with them, where it needs them."""
    jobs = [job for job in (view.training, view.prepare, view.supervisor) if job is not None]
    starting = any(pod["status"].get("phase") in ("Pending", "Failed") for pod in view.pods)
    parts = {"worker": view.training, "prepare": view.prepare, "supervisor": view.supervisor}
    lacking = any(job is not None and end_of(job)[0] is None and not view.of(part) for part, job in parts.items())
    if starting or lacking:
        view.warnings = list(_warnings(details.warnings, view))
    if any(queue_of(job) for job in jobs):
        view.workloads = details.workloads
    return view


def _warnings(events: Iterable[Json], view: View) -> Iterator[Json]:
    uids = {pod["metadata"]["uid"] for pod in view.pods}
    names = {maker for job in (view.name, view.names.prepare, view.names.supervisor) for maker in makers(job)}
    for event in events:
        about = event.get("involvedObject") or event.get("regarding") or {}
        name = str(about.get("name", ""))
        if about.get("uid") in uids or (about.get("kind") != "Pod" and name in names):
            yield event


def seconds(text: object) -> float:
    """Return a time of the API server as unix seconds; 0 for none."""
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
