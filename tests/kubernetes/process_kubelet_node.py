"""A node of the test cluster: what it registers with, its heartbeats, its port for logs."""

from __future__ import annotations

import http.client
import threading
from datetime import UTC, datetime
from pathlib import Path

from kube_client import APPLY, STRATEGIC, Client, Object
from process_kubelet_container import now
from process_kubelet_logs import Find, LogServer

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_SECONDS = 6


class Node:
    """One node, as a kubelet and NVIDIA's GPU feature discovery register it."""

    def __init__(self, name: str, address: str, gpus: int, labels: dict[str, str]) -> None:
        self.name, self.address, self.gpus = name, address, gpus
        self.labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": "zone-a",
        }
        if gpus:
            self.labels |= {
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
                "nvidia.com/gpu.memory": "81920",
                "nvidia.com/gpu.count": str(gpus),
            }
        self.labels |= labels
        self.lost = True  # until it begins
        self._logs: LogServer | None = None
        self._lock = threading.Lock()

    def begin(self, client: Client, certificate: Path, log: Find) -> None:
        """Register it (again, if its object was deleted) and say that it is ready."""
        self._logs = self._logs or LogServer(self.address, certificate, log)
        item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": self.labels}}
        client.json("PATCH", f"/api/v1/nodes/{self.name}?fieldManager=kubelet&force=true", item, APPLY)
        with self._lock:
            self.lost = False
        self.beat(client, full=True)

    def end(self) -> None:
        """Fall silent: no heartbeat is sent after this has returned."""
        with self._lock:
            self.lost = True
        if self._logs is not None:
            self._logs.close()
            self._logs = None

    def beat(self, client: Client, *, full: bool) -> None:
        """Renew the lease, and with `full` the status as well."""
        with self._lock:
            if self.lost:
                return
            time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time}
            lease = {"metadata": {"name": self.name}, "spec": spec}
            if client.request("PATCH", f"{LEASES}/{self.name}", lease, STRATEGIC)[0] == http.client.NOT_FOUND:
                client.json("POST", LEASES, lease)
            if full:
                client.json("PATCH", f"/api/v1/nodes/{self.name}/status", {"status": self.status()}, STRATEGIC)

    def status(self) -> Object:
        """Return what a kubelet writes."""
        room = {"cpu": "96", "memory": "1000Gi", "pods": "110", "ephemeral-storage": "2000Gi"}
        room |= {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        port = self._logs.port if self._logs else 0
        return {
            "capacity": room,
            "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": self.address}, {"type": "Hostname", "address": self.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [ready | {"lastHeartbeatTime": now()}],
        }
