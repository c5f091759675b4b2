"""Other people's jobs, which want the nodes: by a PriorityClass of the scheduler, or through Kueue."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from kube_client import ApiError
from kube_lab import Lab

PRIORITIES = {"low": 1, "high": 1000}


def priorities(lab: Lab) -> None:
    """Make the PriorityClasses "low" and "high"."""
    for name, value in PRIORITIES.items():
        item = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        with contextlib.suppress(ApiError):  # they are there from a test before
            lab.client.json("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", item)


def pod(name: str, gpus: int, priority: str | None = None) -> dict[str, Any]:
    """Return a pod that wants so many GPUs and does nothing."""
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": "sleep",
                "image": "registry.example.org/sleep:1",
                "command": ["sleep", "3600"],
                "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
            }
        ],
        "terminationGracePeriodSeconds": 0,
        "restartPolicy": "Never",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**spec, **({"priorityClassName": priority} if priority else {})},
    }


def outrank(lab: Lab, namespace: str, nodes: int) -> list[str]:
    """Have pods of a high priority ask for that many whole nodes; return their names."""
    names = [f"important-{index}" for index in range(nodes)]
    text = "---\n".join(json.dumps(pod(name, 2, "high")) + "\n" for name in names)
    lab.apply(text, namespace=namespace)
    return names


def kueue_job(lab: Lab, namespace: str, name: str, gpus: int, seconds: int = 5) -> None:
    """Queue a job of a high priority that takes so many GPUs for a few seconds once it runs."""
    template = pod(name, gpus)
    template["spec"]["containers"][0]["command"] = ["sleep", str(seconds)]
    labels = {"kueue.x-k8s.io/queue-name": "training", "kueue.x-k8s.io/priority-class": "high"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"template": {"spec": template["spec"]}, "parallelism": 1, "completions": 1, "suspend": True},
    }
    lab.apply(json.dumps(job), namespace=namespace)
