"""What an API server refuses, as errors with the server's own words, and the command that helps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fullft_cluster.errors import Problem, SchedulerError
from fullft_cluster.kubernetes_api.kinds import INSTALL, Place, place_of


class ApiError(SchedulerError):
    """The API server refused a request, or is out of reach. ``status`` is the HTTP status, 0 where there was none."""

    status = 0

    def __init__(self, problem: Problem, *, words: str = "", reason: str = "", status: int = 0) -> None:
        super().__init__(problem)
        self.words, self.reason = words, reason
        self.status = status


class Unreachable(ApiError):
    """The server did not answer within the time that a lost connection is given."""


class Unauthorized(ApiError):
    """401: the server does not know the user."""


class Forbidden(ApiError):
    """403: a permission is missing."""


class Refused(ApiError):
    """403 for another reason than a permission: a quota, pod security, an admission webhook."""


class NotFound(ApiError):
    """404: there is no such object."""


class NamespaceNotFound(NotFound):
    """404: there is no such namespace."""


class GroupNotFound(NotFound):
    """404: the server does not serve this API: an operator's CRD is not installed."""


class Conflict(ApiError):
    """409: it exists already, has changed meanwhile, or another manager owns a field."""


class Gone(ApiError):
    """410: what a watch or a page of a list continues from is too old."""


class Invalid(ApiError):
    """400, 422: the object is wrong."""


class ServerFault(ApiError):
    """5xx or 429, still after the retries."""


class Permission(NamedTuple):
    """One thing that a user may not do."""

    verb: str
    resource: str
    """With its subresource: ``pods/log``."""
    group: str = ""

    @property
    def kubectl(self) -> str:
        """Return the resource as ``kubectl create role --resource`` takes it."""
        resource, slash, sub = self.resource.partition("/")
        return f"{resource}{'.' if self.group else ''}{self.group}{slash}{sub}"


_CANNOT = re.compile(r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"(?: in API group "(?P<group>[^"]*)")?')
_NO_NAMESPACE = re.compile(r'namespaces? "([^"]+)" not found')
_WRONG_OBJECT = "failed to create typed patch object"
"""An unknown field in a server-side apply is answered by 500, with these words (seen with 1.36)."""


def grants(missing: Iterable[Permission], namespace: str | None, user: str | None) -> str:
    """Return the kubectl commands that grant permissions, as few as say it exactly (None: cluster-wide)."""
    verbs: dict[str, list[str]] = {}
    for one in dict.fromkeys(missing):
        verbs.setdefault(one.kubectl, []).append(one.verb)
    alike: dict[tuple[str, ...], list[str]] = {}
    for resource, allowed in verbs.items():
        alike.setdefault(tuple(allowed), []).append(resource)
    role, where = ("role", f" -n {namespace}") if namespace else ("clusterrole", "")
    lines = []
    for number, (granted, resources) in enumerate(alike.items(), 1):
        name = "fullft-cluster" + (f"-{number}" if len(alike) > 1 else "")
        told = f"--verb={','.join(granted)} --resource={','.join(resources)}"
        lines.append(f"kubectl create {role} {name} {told}{where}")
        lines.append(f"kubectl create {role}binding {name} --{role}={name} {_subject(user)}{where}")
    return " && ".join(lines)


def _subject(user: str | None) -> str:
    """Return the option of ``kubectl create rolebinding`` for whom the server named."""
    name = user or "NAME"
    account = re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", name)
    return f"--serviceaccount={account[1]}:{account[2]}" if account else f"--user={name}"


def failure(status: int, body: Mapping[str, Any], method: str, path: str, host: str) -> ApiError:
    """Return the error for an answer that is none of success. ``body``: its Status, empty where it was no JSON."""
    place = place_of(path)
    words = str(body.get("message") or _phrase(status))
    reason = str(body.get("reason") or "")
    facts: dict[str, Any] = {"words": words, "reason": reason, "status": status}
    where = place.words or host
    if status == 401:
        fix = "Log in anew (the kubeconfig's token or certificate is refused), or choose another --context."
        return Unauthorized(Problem("kubernetes", f"{host} does not know you: {words}", fix), **facts)
    if status == 403:
        return _forbidden(place, method, facts)
    if status == 404:
        return _not_found(place, body, facts)
    if status == 409:
        return Conflict(Problem(where, _one_line(words), _conflict_fix(body)), **facts)
    if status == 410:
        return Gone(Problem(where, _one_line(words)), **facts)
    if status in (400, 422) or (status == 500 and _WRONG_OBJECT in words):
        return Invalid(Problem(where, f"the server refuses it: {_one_line(words)}", _invalid_fix(words)), **facts)
    if status == 429 or status >= 500:
        return ServerFault(Problem(where, f"{host} answers {status}: {_one_line(words)}", _fault_fix(words)), **facts)
    return ApiError(Problem(where, f"{host} answers {status}: {_one_line(words)}", "Is that an API server?"), **facts)


def _forbidden(place: Place, method: str, facts: dict[str, Any]) -> ApiError:
    words = facts["words"]
    match = _CANNOT.search(words)
    if match is None and method != "GET":  # nothing but a permission is in the way of reading
        return Refused(Problem(place.words, f"refused: {_one_line(words)}", _refusal_fix(words)), **facts)
    user = re.search(r'User "([^"]+)"', words)
    if match is not None:
        permission = Permission(match["verb"], match["resource"], match["group"] or place.group)
    else:
        permission = Permission("get" if place.name else "list", place.resource, place.group)
    at = f" in namespace {place.namespace}" if place.namespace else ""
    who = f" (you are {user[1]})" if user else f": {_one_line(words)}"
    fix = f"Ask an administrator for `{grants([permission], place.namespace, user and user[1])}`."
    what = f"you may not {permission.verb} {permission.kubectl}{at}{who}"
    return Forbidden(Problem("kubernetes", what, fix), **facts)


def _refusal_fix(words: str) -> str:
    if "exceeded quota" in words or "failed quota" in words:
        return "Ask for less (--max-gpus, kubernetes.memory), another --namespace, or a larger quota."
    if "PodSecurity" in words:
        return "Use a namespace whose pod-security.kubernetes.io/enforce level allows it."
    if "being terminated" in words:
        return "Wait until the namespace is gone and create it anew, or choose another --namespace."
    if re.search(r"admission webhook \"[^\"]*(?:kubeflow|x-k8s)", words):
        return ""  # an operator's own check of its object, which says what is wrong
    if "denied" in words:
        return "A policy of the cluster says so: ask its administrator."
    return ""


def _not_found(place: Place, body: Mapping[str, Any], facts: dict[str, Any]) -> ApiError:
    words = facts["words"]
    if match := _NO_NAMESPACE.search(words):
        fix = f"Create it by `kubectl create namespace {match[1]}`, or choose another --namespace."
        return NamespaceNotFound(Problem("--namespace", f"there is no namespace {match[1]!r}", fix), **facts)
    details = body.get("details") or {}
    if details.get("name") and facts["reason"] == "NotFound":
        at = f" in namespace {place.namespace}" if place.namespace else ""
        about = (
            "is not there" if details["name"] == place.name else f"{details.get('kind')} {details['name']} is not there"
        )
        return NotFound(Problem(place.words, f"{about}{at}"), **facts)
    return GroupNotFound(group_problem(place.group, place.resource.partition("/")[0]), **facts)


def group_problem(group: str, resource: str) -> Problem:
    """Return what to say where the server does not serve a resource."""
    what = f"the cluster does not have {resource}{'.' if group else ''}{group}"
    if group not in INSTALL:
        return Problem("kubernetes", what, "Is it an older Kubernetes, or not an API server at all?")
    name, command = INSTALL[group]
    return Problem("kubernetes", f"{what}: {name} is not installed", f"An administrator installs it by `{command}`.")


def _conflict_fix(body: Mapping[str, Any]) -> str:
    causes = (body.get("details") or {}).get("causes") or ()
    if any(cause.get("reason") == "FieldManagerConflict" for cause in causes):
        return "Something else set those fields: delete the object, or undo its change."
    return ""


def _invalid_fix(words: str) -> str:
    if "strict decoding error" in words or "field not declared" in words:
        return "The cluster has another version of this API than the manifest is written for."
    return ""


def _fault_fix(words: str) -> str:
    if match := re.search(r'failed calling webhook "([^"]+)"', words):
        return f"The operator behind the webhook {match[1]} does not answer: look at its pods."
    return "Try again later."


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no words"


def _one_line(text: str) -> str:
    return " ".join(text.split())
