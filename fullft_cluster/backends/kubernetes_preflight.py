"""Everything that can be known before the first object of a run is made: all problems at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fullft_cluster.backends.kubernetes_objects import kinds, path_of, words_of
from fullft_cluster.backends.kubernetes_quota import quota_problems
from fullft_cluster.backends.kubernetes_references import doubt, find_namespace, reference_notes, reference_problems
from fullft_cluster.config import KubernetesConfig
from fullft_cluster.errors import FullftError, Problem, SchedulerError, UsageError
from fullft_cluster.kubernetes_api import Api, ApiError, Forbidden, GroupNotFound, Json, NotFound, object_path
from fullft_cluster.kubernetes_api.failures import NamespaceNotFound, Permission, grants, group_problem
from fullft_cluster.kubernetes_api.kinds import Kind

VERBS = ("get", "create", "patch", "delete")
"""What a submit does with each kind: looks, makes (server-side apply is a patch that may create), takes back."""
AT_ONCE = 8
"""Requests at a time: forty of them over a slow line are otherwise ten seconds."""


@dataclass
class Findings:
    """What a preflight found."""

    usage: list[Problem] = field(default_factory=list)
    """Of what the user wrote."""
    cluster: list[Problem] = field(default_factory=list)
    """What the cluster lacks or forbids."""
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise UsageError or SchedulerError with every problem, if there is one."""
        problems = [*self.usage, *self.cluster]
        if problems:
            kind: type[FullftError] = UsageError if self.usage else SchedulerError
            raise kind(dict.fromkeys(problems))


def preflight(api: Api, objects: Sequence[Json], own: KubernetesConfig, nodes: int) -> Findings:
    """Return what is in the way of these objects. Raises ApiError when the server cannot be asked at all."""
    found = Findings()
    try:
        namespace = find_namespace(api, own.namespace)
    except UsageError as error:
        found.usage += error.problems
        return found
    if namespace is not None and (namespace.get("status") or {}).get("phase") == "Terminating":
        fix = "Wait until it is gone and create it anew, or name another."
        found.usage.append(Problem("--namespace", f"the namespace {own.namespace!r} is being deleted", fix))
        return found
    wanted = kinds(objects)
    lacking = list(_not_served(api, [*wanted, *([api.kind("LocalQueue")] if own.queue else [])]))
    found.cluster += [group_problem(kind.group, kind.plural) for kind in lacking]
    permissions = _permissions(api, [kind for kind in wanted if kind not in lacking], own.namespace)
    hint = doubt(own.namespace) if namespace is None else ""
    found.cluster += [Problem(one.where, one.what, one.fix + hint) for one in permissions]
    if found.cluster:  # what follows asks with these very permissions
        return found
    found.usage += _taken(api, objects, own.namespace)
    hidden: list[str] = []
    found.usage += reference_problems(api, own, nodes, hidden)
    if hidden:
        found.notes.append(f"not checked, since you may not look at it: {', '.join(hidden)}")
    found.cluster += _quotas(api, objects, own)
    found.notes += reference_notes(api, own, nodes)
    return found


def _not_served(api: Api, wanted: Sequence[Kind]) -> Iterator[Kind]:
    """Yield the kinds that the server does not know."""
    served: dict[str, frozenset[str]] = {}
    for kind in dict.fromkeys(wanted):
        if kind.root not in served:
            try:
                served[kind.root] = api.resources(kind.root)
            except Forbidden:  # discovery is closed here: the dry run will say
                served[kind.root] = frozenset((kind.plural,))
        if kind.plural not in served[kind.root]:
            yield kind


def _permissions(api: Api, wanted: Sequence[Kind], namespace: str) -> list[Problem]:
    """Return the missing permissions as one problem, with the commands that grant them."""
    if api.may(Permission("*", "*", "*"), namespace):  # an administrator of the namespace
        return []
    asked = [Permission(verb, kind.plural, kind.group) for kind in wanted for verb in VERBS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        allowed = list(pool.map(lambda one: api.may(one, namespace), asked))
    missing = [one for one, may in zip(asked, allowed, strict=True) if not may]
    if not missing:
        return []
    user = None
    with contextlib.suppress(ApiError):
        user = api.user()
    by_resource: dict[str, list[str]] = {}
    for one in missing:
        by_resource.setdefault(one.kubectl, []).append(one.verb)
    told = "; ".join(f"{', '.join(verbs)} {resource}" for resource, verbs in by_resource.items())
    what = f"you{f' ({user})' if user else ''} may not, in namespace {namespace}: {told}"
    return [Problem("kubernetes", what, f"Ask an administrator for `{grants(missing, namespace, user)}`.")]


def _taken(api: Api, objects: Sequence[Json], namespace: str) -> list[Problem]:
    """Return the objects that are there already: a run of that name, or somebody else's."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        there = list(pool.map(lambda obj: api.exists(path_of(obj)), objects))
    taken = [obj for obj, is_there in zip(objects, there, strict=True) if is_there]
    found = [words_of(obj) for obj in taken]
    if not found:
        return []
    if all(obj["kind"] == "PersistentVolumeClaim" for obj in taken):
        name = taken[0]["metadata"]["labels"]["app.kubernetes.io/instance"]
        fix = f"`fullft-cluster delete {name} --backend kubernetes --namespace {namespace} --storage` deletes it, with"
        fix += " every checkpoint in it; or choose another --name."
        what = f"is taken in namespace {namespace}: {found[0]} is left of a run that was deleted"
        return [Problem("--name", what, fix)]
    few = ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")
    fix = f"Choose another --name. `fullft-cluster list --backend kubernetes --namespace {namespace}` shows the runs."
    return [Problem("--name", f"is taken in namespace {namespace}: there is {few}", fix)]


def _quotas(api: Api, objects: Sequence[Json], own: KubernetesConfig) -> list[Problem]:
    namespace = own.namespace
    try:
        quotas = api.list(object_path("ResourceQuota", namespace))
        if not quotas:
            return []
        ranges = api.list(f"/api/v1/namespaces/{namespace}/limitranges")
    except Forbidden:
        return []
    limits = [limit for one in ranges for limit in (one.get("spec") or {}).get("limits") or ()]
    has_default = any(limit.get("type") == "Container" and limit.get("default") for limit in limits)
    return list(quota_problems(quotas, objects, has_default_limits=has_default, waits=own.queue is not None))


def judged_by_server(api: Api, objects: Sequence[Json]) -> list[Json]:
    """Have the server and its webhooks judge objects without making them; return those that could be judged.

    Raises FullftError with everything that is refused. Some are refused only because what they refer to is not there
    yet, which a true apply makes before them: a TrainJob without its runtime, and, unless one may bind any role, a
    RoleBinding without its Role.
    """
    findings, judged = Findings(), []
    before: set[tuple[str, str]] = set()
    for obj in objects:
        needed = _needs(obj)
        waits = needed in before
        before.add((obj["kind"], obj["metadata"]["name"]))
        if waits and obj["kind"] == "TrainJob":
            continue
        try:
            api.apply(obj, dry_run=True)
            judged.append(obj)
        except GroupNotFound as error:
            findings.cluster += error.problems
        except NamespaceNotFound as error:
            findings.usage += error.problems
        except NotFound as error:
            if not waits:
                findings.cluster += error.problems
        except ApiError as error:
            if error.status in {0, 401} or error.status >= 500:
                raise
            findings.cluster += [_grant_needed(error, obj)]
    findings.check()
    return judged


def not_judged(objects: Sequence[Json], judged: Sequence[Json]) -> Iterator[str]:
    """Yield which objects could not be judged, and why: of interest where nothing is to be made."""
    for obj in objects:
        if obj not in judged:
            yield f"{words_of(obj)} cannot be judged before its {' '.join(_needs(obj))} is there"


def _needs(obj: Json) -> tuple[str, str]:
    """Return the kind and name of what an object refers to, and is refused without."""
    ref = (obj.get("spec") or {}).get("runtimeRef") if obj["kind"] == "TrainJob" else obj.get("roleRef")
    return (str(ref["kind"]), str(ref["name"])) if ref else ("", "")


def _grant_needed(error: ApiError, obj: Json) -> Problem:
    """Return the server's words, and the way out where it is about handing on rights that one does not have."""
    if "attempting to grant RBAC permissions" not in error.words:
        return error.problems[0]
    fix = (
        "Name an account that is there (kubernetes.service_account), or ask an administrator for "
        "`kubectl create rolebinding ... --clusterrole=edit`, which holds these rights."
    )
    what = "you cannot give the supervisor rights that you do not have yourself"
    return Problem(words_of(obj), f"{what}: {' '.join(error.words.split())[:400]}", fix)
