"""What a Job, PyTorchJob, JobSet or TrainJob, and Kueue's Workload, say of themselves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fullft_cluster.runtime import pod_state

Json = Mapping[str, Any]


def end_of(job: Json) -> tuple[str | None, str]:
    """Return how an object that runs pods has ended (``completed``, ``failed``), None while it has not; its words."""
    end, words = pod_state.end_of_job(job) or (None, "")
    return end, " ".join(words.split())


def workload_of(job: Json, workloads: Sequence[Json]) -> Json | None:
    """Return Kueue's Workload of an object: the newest that it owns."""
    uid = job["metadata"].get("uid")
    owned = [
        one for one in workloads if any(ref.get("uid") == uid for ref in one["metadata"].get("ownerReferences") or ())
    ]
    return max(owned, key=lambda one: str(one["metadata"].get("creationTimestamp", "")), default=None)


def queued(job: Json, workloads: Sequence[Json]) -> str:
    """Return why Kueue holds an object back: its own words."""
    queue = pod_state.queue_of(job)
    workload = workload_of(job, workloads)
    if workload is None:
        return f"queued by Kueue in {queue}"
    conditions = {one["type"]: one for one in (workload.get("status") or {}).get("conditions") or ()}
    told = [f"queued by Kueue in {queue}"]
    evicted = conditions.get("Evicted", {})
    if evicted.get("status") == "True":
        told.append(f"{evicted.get('reason', 'evicted').lower()}: {_line(evicted.get('message'))}")
    for kind in ("QuotaReserved", "Admitted"):
        condition = conditions.get(kind, {})
        if condition.get("status") == "False" and condition.get("message"):
            told.append(_line(condition["message"]))
            break
    if (workload.get("spec") or {}).get("active") is False:
        told.append("its Workload is switched off (spec.active)")
    return ": ".join((told[0], "; ".join(told[1:]))) if told[1:] else told[0]


def _line(text: object) -> str:
    return " ".join(str(text or "").split())
