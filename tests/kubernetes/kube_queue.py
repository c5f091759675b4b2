"""A Kueue queue for a namespace of a test: https://kueue.sigs.k8s.io/docs/concepts/cluster_queue/"""

from __future__ import annotations

import http.client

from kube_client import ApiError, Client, Object

GROUP = "/apis/kueue.x-k8s.io/v1beta2"
FLAVOR, QUEUE = "a100", "training"
PRIORITIES = {"low": 100, "high": 1000}


def make(client: Client, namespace: str, gpus: int) -> str:
    """Make a ClusterQueue for so many GPUs and a LocalQueue that leads to it; return the LocalQueue's name."""
    quota = {"cpu": "1000", "memory": "10Ti", "nvidia.com/gpu": str(gpus)}
    flavor = {"name": FLAVOR, "resources": [{"name": name, "nominalQuota": most} for name, most in quota.items()]}
    spec = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "queueingStrategy": "BestEffortFIFO",
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": list(quota), "flavors": [flavor]}],
    }
    _create(client, "resourceflavors", "ResourceFlavor", {"metadata": {"name": FLAVOR}, "spec": {}})
    for name, value in PRIORITIES.items():
        priority = {"metadata": {"name": name}, "value": value, "description": "of the tests"}
        _create(client, "workloadpriorityclasses", "WorkloadPriorityClass", priority)
    _create(client, "clusterqueues", "ClusterQueue", {"metadata": {"name": namespace}, "spec": spec})
    local = {"metadata": {"name": QUEUE}, "spec": {"clusterQueue": namespace}}
    _create(client, f"namespaces/{namespace}/localqueues", "LocalQueue", local)
    return QUEUE


def remove(client: Client, namespace: str) -> None:
    """Have the namespace's ClusterQueue deleted, if there is one; Kueue waits for its workloads."""
    client.request("DELETE", f"{GROUP}/clusterqueues/{namespace}")


def _create(client: Client, plural: str, kind: str, item: Object) -> None:
    try:
        client.json("POST", f"{GROUP}/{plural}", {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, **item})
    except ApiError as error:
        if error.status != http.client.CONFLICT:  # made for another namespace
            raise
