"""Whether the ResourceQuotas of a namespace leave room for a run. Pure.

Rules: https://kubernetes.io/docs/concepts/policy/resource-quotas/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fullft_cluster.errors import Problem
from fullft_cluster.inventory.kube_json import quantity
from fullft_cluster.kubernetes_api.kinds import kind_of

Json = Mapping[str, Any]
_ASKED_OF_ALL = ("limits.cpu", "requests.cpu", "limits.memory", "requests.memory")
"""A quota of one of these makes it an error for a container to have none."""


def pod_specs(obj: Json) -> Iterator[tuple[int, Json]]:
    """Yield the pods that an object of ours makes: how many, and their spec."""
    spec = obj.get("spec") or {}
    if obj["kind"] == "Job":
        yield int(spec.get("parallelism", 1)), spec["template"]["spec"]
    elif obj["kind"] == "PyTorchJob":
        for replica in spec["pytorchReplicaSpecs"].values():
            yield int(replica.get("replicas", 1)), replica["template"]["spec"]
    elif obj["kind"] in ("JobSet", "TrainingRuntime"):
        inner = spec if obj["kind"] == "JobSet" else spec["template"]["spec"]
        for job in inner["replicatedJobs"]:
            for count, pod in pod_specs({"kind": "Job", **job["template"]}):
                yield int(job.get("replicas", 1)) * count, pod


def demand(objects: Sequence[Json]) -> dict[str, float]:
    """Return what objects need, by the names that quotas have for it; each pod in them counts."""
    need: dict[str, float] = defaultdict(float)
    for obj in objects:
        kind = kind_of(obj)
        need[f"count/{kind.resource}"] += 1
        need[kind.plural] += 0 if kind.group else 1
        if obj["kind"] == "PersistentVolumeClaim":
            size = quantity(obj["spec"]["resources"]["requests"]["storage"])
            need["requests.storage"] += size
            if storage_class := obj["spec"].get("storageClassName"):
                need[f"{storage_class}.storageclass.storage.k8s.io/requests.storage"] += size
                need[f"{storage_class}.storageclass.storage.k8s.io/persistentvolumeclaims"] += 1
        for count, pod in pod_specs(obj):
            need["pods"] += count
            need["count/pods"] += count
            for name, amount in _requests(pod).items():
                need[name] += count * amount
    return need


def _requests(pod: Json) -> dict[str, float]:
    """Return a pod's requests and limits, by quota names: the sum of its containers, or its largest init container."""
    found: dict[str, float] = {}
    for side in ("requests", "limits"):
        every = [_side(one, side) for one in pod.get("containers") or ()]
        first = [_side(one, side) for one in pod.get("initContainers") or ()]
        for name in {name for one in (*every, *first) for name in one}:
            total = sum(one.get(name, 0.0) for one in every)
            amount = max(total, *(one.get(name, 0.0) for one in first), 0.0)
            found[f"{side}.{name}"] = amount
            if side == "requests" and name in ("cpu", "memory", "ephemeral-storage"):
                found[name] = amount
    return found


def _side(container: Json, side: str) -> dict[str, float]:
    resources = container.get("resources") or {}
    amounts = dict(resources.get(side) or {})
    if side == "requests":  # what has a limit alone asks for as much
        amounts = {**(resources.get("limits") or {}), **amounts}
    return {name: quantity(amount) for name, amount in amounts.items()}


def quota_problems(
    quotas: Sequence[Json], objects: Sequence[Json], *, has_default_limits: bool = False, waits: bool = False
) -> Iterator[Problem]:
    """Yield what the quotas leave too little of.

    ``has_default_limits``: a LimitRange gives limits to what has none. ``waits``: Kueue holds the pods back until there
    is room, so only what exceeds the whole quota is in the way.
    """
    for quota in quotas:
        hard = (quota.get("status") or {}).get("hard") or (quota.get("spec") or {}).get("hard") or {}
        used = (quota.get("status") or {}).get("used") or {}
        counted = [obj for obj in objects if _applies(quota, obj)]
        need = demand(counted)
        where = f"ResourceQuota {quota['metadata']['name']}"
        for name, limit in sorted(hard.items()):
            most, taken, wanted = quantity(limit), quantity(used.get(name, 0)), float(need.get(name, 0))
            if wanted > 0 and wanted > most - (0.0 if waits else taken):
                left = f"{_amount(max(0.0, most - taken), name)} of {limit} are left"
                fix = "Ask for less (--max-gpus, kubernetes.memory), wait, name another --namespace, or have it raised."
                yield Problem(where, f"{name}: the run needs {_amount(wanted, name)}, and {left}", fix)
            elif name in _ASKED_OF_ALL and need.get("pods") and not wanted and not has_default_limits:
                fix = "Have a LimitRange with a default made in the namespace, or name another --namespace."
                yield Problem(where, f"it asks every container for {name}, and ours have none", fix)


def _applies(quota: Json, obj: Json) -> bool:
    """Return whether a quota counts an object: one with scopes counts only pods of these scopes."""
    spec = quota.get("spec") or {}
    scopes = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or ()]
    scopes += (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    pods = [pod for _, pod in pod_specs(obj)]
    return all(pods and all(_in_scope(scope, pod) for pod in pods) for scope in scopes)


def _in_scope(scope: Json, pod: Json) -> bool:
    name, operator, values = scope["scopeName"], scope.get("operator", "Exists"), scope.get("values") or ()
    if name == "PriorityClass":
        priority = pod.get("priorityClassName")
        matches = {
            "Exists": priority is not None,
            "DoesNotExist": priority is None,
            "In": priority in values,
            "NotIn": priority not in values,
        }
        return matches.get(operator, False)
    terminating = pod.get("activeDeadlineSeconds") is not None
    return {"Terminating": terminating, "NotTerminating": not terminating, "NotBestEffort": True}.get(name, False)


def _amount(value: float, name: str) -> str:
    if ("memory" in name or "storage" in name) and "count" not in name and value >= 2**20:
        return f"{value / 2**30:.4g}Gi"
    return f"{value:.10g}"
