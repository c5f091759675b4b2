"""What can go wrong in a cluster, on demand: evictions, drains, lost nodes, kills for want of memory, no API server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from kube_client import MERGE, Client
from kube_plane import ControlPlane

CONTROLLERS_TAINTS = {f"node.kubernetes.io/{state}" for state in ("not-ready", "unreachable", "unschedulable")}


class Faults:
    """The part of a Lab that breaks it, and mends it."""

    plane: ControlPlane
    client: Client

    def ask(self, do: str, **command: Any) -> None:
        raise NotImplementedError

    # --- pods
    def evict(self, namespace: str, pod: str) -> None:
        """Evict a pod by the Eviction API, as `kubectl drain` does; ApiError 429 if a disruption budget forbids it."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        self.client.json("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction)

    def delete_pod(self, namespace: str, pod: str, grace: float | None = None) -> None:
        """Delete a pod, with its own grace period or another one."""
        options = None if grace is None else {"gracePeriodSeconds": grace}
        self.client.json("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod}", options)

    def oom_kill(self, namespace: str, pod: str, container: str | None = None) -> None:
        """Kill a container (the first one) as the kernel does for want of memory: exit code 137, OOMKilled."""
        self.ask("kill", namespace=namespace, pod=pod, container=container, because="OOMKilled")

    def pressure_evict(self, namespace: str, pod: str, grace: float = 5) -> None:
        """End a pod as a kubelet does whose node is short of something: Failed, Evicted, TerminationByKubelet."""
        message = "The node was low on resource: ephemeral-storage."
        self.ask("fail", namespace=namespace, pod=pod, reason="Evicted", message=message, grace=grace)

    # --- nodes
    def cordon(self, node: str, *, cordoned: bool = True) -> None:
        """Let nothing more be scheduled there."""
        self.client.json("PATCH", f"/api/v1/nodes/{node}", {"spec": {"unschedulable": cordoned or None}}, MERGE)

    def drain(self, node: str) -> None:
        """Cordon a node and evict every pod on it; does not wait for their ends."""
        self.cordon(node)
        for pod in self.client.get(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]:
            if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                self.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])

    def lose(self, node: str) -> None:
        """Lose a node: no more heartbeats, and its processes are dead when this returns."""
        self.ask("lose", name=node)

    def cut_off(self, node: str) -> None:
        """Cut a node off: no more heartbeats, and its pods go on without a network (their volumes are still there)."""
        self.ask("lose", name=node, kill=False)

    def bring_back(self, node: str) -> None:
        """Bring a node back, ready; it is registered again if its object was deleted meanwhile."""
        self.ask("bring_back", name=node)

    def delete_node(self, node: str) -> None:
        """Delete a node's object, as an administrator or a cloud's controller does with one that is gone."""
        self.client.json("DELETE", f"/api/v1/nodes/{node}")

    # --- the API server
    @contextlib.contextmanager
    def api_down(self) -> Iterator[None]:
        """No API server for the length of a block; when it ends, it is there again with the same data."""
        self.plane.stop_api()
        try:
            yield
        finally:
            self.plane.start_api()

    def pause_api(self, seconds: float) -> None:
        """No API server for so long."""
        with self.api_down():
            time.sleep(seconds)

    # --- all well again
    def mend(self) -> None:
        """Bring back every node, uncordoned and without taints of tests; does not wait until it is ready."""
        self.ask("mend")
        for node in self.client.get("/api/v1/nodes")["items"]:
            taints = node["spec"].get("taints", [])
            own = [taint for taint in taints if taint["key"] in CONTROLLERS_TAINTS]
            if node["spec"].get("unschedulable") or len(own) < len(taints):
                change = {"spec": {"unschedulable": None, "taints": own or None}}
                self.client.json("PATCH", f"/api/v1/nodes/{node['metadata']['name']}", change, MERGE)
