"""The verbs: get, list, apply, patch, delete, and who may do what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fullft_cluster.kubernetes_api.failures import Conflict, Forbidden, Gone, NotFound, Permission
from fullft_cluster.kubernetes_api.kinds import KINDS, Kind, kind_of, object_path
from fullft_cluster.kubernetes_api.transport import Query, Request, Transport

MANAGER = "fullft-cluster"
"""Name under which fields are owned (https://kubernetes.io/docs/reference/using-api/server-side-apply/)."""

PAGE = 500
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Of an object its metadata alone, so that a secret's value never comes here."""

Json = dict[str, Any]
Objects = list[Json]
_STRICT = {"fieldManager": MANAGER, "fieldValidation": "Strict"}


class Api(Transport):
    """One API server. Every method raises ApiError, and bears to be repeated, as it is while the server is away."""

    context: str | None = None
    """Of the kubeconfig; None inside a cluster."""
    namespace = "default"
    """Where what says no namespace is looked for: the context's."""

    def __init__(self, client: Any, **how: Any) -> None:
        super().__init__(client, **how)
        self._versions: dict[str, str] = {}

    # --- to read
    def get(self, path: str) -> Json:
        """Return an object. Raises NotFound."""
        found: Json = self.request("GET", path)
        return found

    def find(self, path: str) -> Json | None:
        """Return an object, None when there is none."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def exists(self, path: str) -> bool:
        """Return whether there is such an object, of which only the metadata is sent."""
        try:
            self.ask(Request("GET", path, accept=METADATA))
        except NotFound:
            return False
        return True

    def list(self, path: str, label_selector: str | None = None, field_selector: str | None = None) -> Objects:
        """Return the objects of a path, all pages of them."""
        return self.list_version(path, label_selector, field_selector)[0]

    def list_version(
        self, path: str, label_selector: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        """Return the objects of a path, and the version from which a watch goes on."""
        query: dict[str, str | int | None] = {"labelSelector": label_selector, "fieldSelector": field_selector}
        while True:
            try:
                pages = list(self._pages(path, query))
            except Gone:  # the pages took too long: their version is no longer kept
                continue
            kind = str(pages[0].get("kind", "")).removesuffix("List")
            version = str(pages[0].get("apiVersion", ""))
            items = [
                {"apiVersion": version, "kind": kind, **item} for page in pages for item in page.get("items") or ()
            ]
            return items, str(pages[-1]["metadata"].get("resourceVersion", ""))

    def _pages(self, path: str, query: Mapping[str, str | int | None]) -> Iterator[Json]:
        more: str | None = None
        while True:
            page: Json = self.request("GET", path, {**query, "limit": PAGE, "continue": more})
            yield page
            more = page["metadata"].get("continue") or None
            if more is None:
                return

    def version(self) -> str:
        """Return the server's version: ``1.36.3``."""
        return str(self.request("GET", "/version").get("gitVersion", "")).removeprefix("v")

    def resources(self, group_version_path: str) -> frozenset[str]:
        """Return the plurals that are served below ``/apis/GROUP/VERSION``; none where that is not there."""
        try:
            served = self.request("GET", group_version_path).get("resources") or ()
        except NotFound:
            return frozenset()
        return frozenset(str(one["name"]) for one in served)

    def kind(self, name: str) -> Kind:
        """Return where a kind is in this cluster: an operator may serve an older version than the table has."""
        known = KINDS[name]
        if known.group not in self._versions:
            try:
                found = self.request("GET", f"/apis/{known.group}")
            except (NotFound, Forbidden):
                found = {}
            served = [str(one["version"]) for one in found.get("versions") or ()]
            preferred = str((found.get("preferredVersion") or {}).get("version", known.version))
            self._versions[known.group] = known.version if known.version in served else preferred
        return known._replace(version=self._versions[known.group])

    def may(self, permission: Permission, namespace: str | None, name: str | None = None) -> bool:
        """Return whether the server would allow it (SelfSubjectAccessReview, which everybody may ask for)."""
        resource, _, subresource = permission.resource.partition("/")
        asked = {"verb": permission.verb, "group": permission.group, "resource": resource, "subresource": subresource}
        asked |= {"namespace": namespace or "", "name": name or ""}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
        }
        for _ in range(3):
            status = self.request("POST", object_path("SelfSubjectAccessReview", None), body=body)["status"]
            if status.get("allowed") or not (self.is_settling or status.get("evaluationError")):
                break
            self.sleep(1.0)  # it has not read all of its roles yet
        return bool(status.get("allowed"))

    def user(self) -> str | None:
        """Return whom the server takes us for; None where it does not say."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = self.request("POST", object_path("SelfSubjectReview", None), body=body)
        except NotFound:
            return None
        return str(answer["status"]["userInfo"].get("username", "")) or None

    # --- to write
    def create(self, obj: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Create an object. Raises Conflict when it is there, which may be from a try whose answer was lost."""
        query: Query = {**_STRICT, "dryRun": "All" if dry_run else None}
        made: Json = self.request("POST", _path(obj).rpartition("/")[0], query, obj)
        return made

    def apply(self, obj: Mapping[str, Any], dry_run: bool = False) -> Json:
        """Make an object so, by server-side apply: created if it is not there; unknown fields are refused.

        Raises Conflict where somebody else set one of the fields to another value.
        """
        query: Query = {**_STRICT, "force": False, "dryRun": "All" if dry_run else None}
        return self._patch(_path(obj), obj, "application/apply-patch+yaml", query)

    def merge_patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """Merge values into an object (RFC 7386): None removes a key."""
        return self._patch(path, body, "application/merge-patch+json", {"fieldManager": MANAGER})

    def json_patch(self, path: str, ops: Iterable[Mapping[str, Any]]) -> Json:
        """Change an object step by step (RFC 6902).

        One that appends to a list is sent again after a lost answer only together with a ``test`` that fails then.
        """
        steps = list(ops)
        appends = any(op["op"] == "add" and str(op["path"]).endswith("/-") for op in steps)
        guarded = any(op["op"] == "test" for op in steps)
        query = {"fieldManager": MANAGER}
        return self._patch(path, steps, "application/json-patch+json", query, again=guarded or not appends)

    def _patch(self, path: str, body: Any, content_type: str, query: Query, *, again: bool = True) -> Json:
        for _ in range(5):
            try:
                made: Json = self.ask(Request("PATCH", path, query, body, content_type, again=again))
                return made
            except Conflict as error:
                if "the object has been modified" not in error.words:
                    raise
                conflict = error
                self.sleep(0.2)
        raise conflict

    def delete(
        self,
        path: str,
        grace_seconds: int | None = None,
        propagation: str | None = None,
        *,
        uid: str | None = None,
    ) -> bool:
        """Delete an object; False when there was none (any more).

        ``propagation``: Background, Foreground or Orphan. ``uid``: only the object with it; another raises Conflict.
        """
        # All in the body: where there is one, the query's gracePeriodSeconds is not looked at.
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        body |= {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        body |= {} if propagation is None else {"propagationPolicy": propagation}
        body |= {} if uid is None else {"preconditions": {"uid": uid}}
        try:
            self.request("DELETE", path, body=body)
        except NotFound:
            return False
        return True


def _path(obj: Mapping[str, Any]) -> str:
    metadata = obj["metadata"]
    return object_path(kind_of(obj), metadata.get("namespace"), metadata["name"])
