"""What a configuration names in a cluster: is it there, and can it be used?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from fullft_cluster.config import KubernetesConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.kubernetes_api import Api, ApiError, Forbidden, Json, NotFound, object_path
from fullft_cluster.kubernetes_api.failures import NamespaceNotFound
from fullft_cluster.kubernetes_api.kinds import KINDS
from fullft_cluster.kubernetes_api.transport import Request

_VERSIONS_VARY = ("LocalQueue", "WorkloadPriorityClass")
"""Kueue's: v1beta2 since 0.14."""


class Named(NamedTuple):
    """An object that the configuration names."""

    key: str
    kind: str
    name: str
    fix: str


def reference_problems(api: Api, own: KubernetesConfig, nodes: int, hidden: list[str]) -> Iterator[Problem]:
    """Yield what is named and is not there, or cannot be used.

    What may not be looked at is added to ``hidden``: only the pods will tell. Of secrets the metadata alone is asked
    for.
    """
    for named in _named(own):
        try:
            kind = api.kind(named.kind) if named.kind in _VERSIONS_VARY else KINDS[named.kind]
            namespace = own.namespace if kind.namespaced else None
            if not api.exists(object_path(kind, namespace, named.name)):
                at = f" in namespace {own.namespace}" if namespace else ""
                yield Problem(f"kubernetes.{named.key}", f"there is no {named.kind} {named.name!r}{at}", named.fix)
        except Forbidden:
            hidden.append(f"{named.kind} {named.name!r} (kubernetes.{named.key})")
    if own.claim is not None:
        yield from _claim(api, own, own.claim, nodes)


def find_namespace(api: Api, name: str) -> Json | None:
    """Return a namespace, None where it may not be looked at. Raises UsageError when there is none of that name."""
    try:
        return api.get(object_path("Namespace", None, name))
    except NamespaceNotFound as error:
        raise UsageError(error.problems) from None
    except Forbidden:
        return None


def doubt(namespace: str) -> str:
    """Return what to ask where everything is forbidden in a namespace that may not be looked at."""
    return f" Is there a namespace {namespace!r} at all?"


def _named(own: KubernetesConfig) -> Iterator[Named]:
    at = f" -n {own.namespace}"
    if own.service_account is not None:
        fix = f"`kubectl create serviceaccount {own.service_account}{at}` makes it; or leave the key out."
        yield Named("service_account", "ServiceAccount", own.service_account, fix)
    for key, variable in (("hf_token_secret", "HF_TOKEN"), ("wandb_secret", "WANDB_API_KEY")):
        if (secret := getattr(own, key)) is not None:
            fix = f"`kubectl create secret generic {secret} --from-literal={variable}=...{at}` makes it."
            yield Named(key, "Secret", secret, fix)
    for secret in own.image_pull_secrets:
        fix = (
            f"`kubectl create secret docker-registry {secret} --docker-server=... --docker-username=...{at}` makes it."
        )
        yield Named("image_pull_secrets", "Secret", secret, fix)
    if own.priority_class is not None:
        yield Named("priority_class", "PriorityClass", own.priority_class, "`kubectl get priorityclasses` lists them.")
    if own.storage_class is not None:
        yield Named("storage_class", "StorageClass", own.storage_class, "`kubectl get storageclasses` lists them.")
    if own.queue is not None:
        fix = f"`kubectl get localqueues{at}` lists them; an administrator makes one for the namespace."
        yield Named("queue", "LocalQueue", own.queue, fix)
    if own.queue_priority is not None:
        fix = "`kubectl get workloadpriorityclasses` lists them."
        yield Named("queue_priority", "WorkloadPriorityClass", own.queue_priority, fix)


def _claim(api: Api, own: KubernetesConfig, name: str, nodes: int) -> Iterator[Problem]:
    where = "kubernetes.claim"
    try:
        claim = api.get(object_path("PersistentVolumeClaim", own.namespace, name))
    except Forbidden:
        return
    except NotFound:
        fix = f"`kubectl get pvc -n {own.namespace}` lists them; without the key the run gets a claim of its own."
        yield Problem(where, f"there is no PersistentVolumeClaim {name!r} in namespace {own.namespace}", fix)
        return
    yield from claim_problems(claim, nodes)


def claim_problems(claim: Json, nodes: int) -> Iterator[Problem]:
    """Yield why a claim cannot hold the run directory of a run on so many nodes."""
    where, name = "kubernetes.claim", claim["metadata"]["name"]
    spec, status = claim.get("spec") or {}, claim.get("status") or {}
    modes = set(status.get("accessModes") or spec.get("accessModes") or ())
    fix = "Name a claim with the access mode ReadWriteMany, on a file system that all nodes share."
    if "ReadWriteMany" in modes:
        pass
    elif "ReadWriteOnce" in modes and nodes > 1:
        yield Problem(where, f"{name!r} is ReadWriteOnce, for one node, and the run has {nodes}", fix)
    elif modes and "ReadWriteOnce" not in modes:
        yield Problem(where, f"{name!r} is {', '.join(sorted(modes))}, and several pods write to it", fix)
    if status.get("phase") == "Lost":
        yield Problem(where, f"{name!r} has lost its volume", "Name another, or have its volume restored.")
    if claim["metadata"].get("deletionTimestamp"):
        yield Problem(where, f"{name!r} is being deleted", "Name another.")


def reference_notes(api: Api, own: KubernetesConfig, nodes: int) -> Iterator[str]:
    """Yield what may be in the way of the pods, but need not: a node may come, a class may be given a default."""
    with contextlib.suppress(ApiError):
        if own.node_selector and not _some_node(api, own.node_selector):
            labels = ", ".join(f"{key}={value}" for key, value in own.node_selector.items())
            yield f"no node has {labels} (kubernetes.node_selector): the pods wait until one comes"
    with contextlib.suppress(ApiError):
        if not (own.claim or own.host_path or own.nfs or own.storage_class) and not _default_class(api):
            yield "the cluster has no default StorageClass: the run's claim waits for a volume"
    with contextlib.suppress(ApiError):
        if own.claim is not None and nodes == 1:
            claim = api.get(object_path("PersistentVolumeClaim", own.namespace, own.claim))
            if "ReadWriteMany" not in (claim["spec"].get("accessModes") or ()):
                yield f"claim {own.claim} is for one node: every pod of the run, the supervisor's too, has to fit on it"


def _some_node(api: Api, labels: dict[str, str]) -> bool:
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return bool(api.ask(Request("GET", object_path("Node", None), {"labelSelector": selector, "limit": 1}))["items"])


def _default_class(api: Api) -> bool:
    key = "storageclass.kubernetes.io/is-default-class"
    classes = api.list(object_path("StorageClass", None))
    return any((one["metadata"].get("annotations") or {}).get(key) == "true" for one in classes)
