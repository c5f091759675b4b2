"""What the objects of pods and of training jobs say about themselves. Pure: values as the API server gives them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]

DISRUPTIONS = {
    "PreemptionByScheduler": "PREEMPTED",
    "EvictionByEvictionAPI": "REQUEUED",
    "TerminationByKubelet": "REQUEUED",
    "DeletionByTaintManager": "NODE_FAIL",
    "DeletionByPodGC": "NODE_FAIL",
}
"""Reasons of the condition DisruptionTarget, in the words of `policy.SCHEDULER_CAUSES`.

https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
"""

OVERDUE_SECONDS = 60.0
"""After so long past the end of its grace period, a pod is not ended by its kubelet any more."""

_BY_WEIGHT = ("OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "REQUEUED")


def ended(pod: Json) -> bool:
    """Return whether all containers of a pod have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def leaving(pod: Json) -> bool:
    """Return whether a pod was told to go."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def ready(pod: Json) -> bool:
    """Return whether a pod is ready; that of a silent node is not, by word of the node controller."""
    return _condition(pod, "Ready").get("status") == "True"


def overdue(pod: Json) -> bool:
    """Return whether a pod should have been gone a minute ago: its deletionTimestamp has the grace period in it."""
    stamp = pod["metadata"].get("deletionTimestamp")
    if not stamp:
        return False
    due = datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
    return time.time() - due > OVERDUE_SECONDS


def abandoned(pod: Json) -> bool:
    """Return whether the node controller has given a pod up, and its node does not answer."""
    return leaving(pod) and end_of_pod(pod) == "NODE_FAIL" and not ready(pod) and not ended(pod)


def _condition(obj: Json, kind: str) -> Json:
    conditions = obj.get("status", {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})


def end_of_pod(pod: Json) -> str | None:
    """Return what ended a pod, or is about to, in SLURM's words; None where it does not say."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or ():
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            if (state.get("terminated") or {}).get("reason") == "OOMKilled":
                return "OUT_OF_MEMORY"
    if status.get("reason") == "Evicted":  # by its kubelet, as the node runs out of something: this very pod, mostly
        return "OUT_OF_MEMORY" if "memory" in status.get("message", "") else None
    disruption = _condition(pod, "DisruptionTarget")
    return DISRUPTIONS.get(disruption.get("reason", "")) if disruption.get("status") == "True" else None


def end_of_world(pods: Iterable[Json]) -> str | None:
    """Return what ended the pods of an attempt: the word that explains most."""
    words = {end_of_pod(pod) for pod in pods}
    return next((word for word in _BY_WEIGHT if word in words), None)


def suspended(job: Json) -> bool:
    """Return whether a job of any kind is suspended (a PyTorchJob has it in its run policy)."""
    spec = job.get("spec", {})
    return bool(spec.get("suspend") or spec.get("runPolicy", {}).get("suspend"))


def queue_of(job: Json) -> str | None:
    """Return the Kueue queue that a job is in, which says when it runs."""
    name = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    return None if name is None else str(name)


def end_of_job(job: Json) -> tuple[str, str] | None:
    """Return (``failed`` or ``completed``, the controller's words) of a job that has ended, else None."""
    for condition in job.get("status", {}).get("conditions") or ():
        kind = condition.get("type")
        if condition.get("status") == "True" and kind in ("Failed", "Succeeded", "Complete", "Completed"):
            words = condition.get("message") or condition.get("reason") or kind
            return ("failed" if kind == "Failed" else "completed"), str(words)
    return None
