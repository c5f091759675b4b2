"""Node objects as a kubelet and NVIDIA's GPU feature discovery leave them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class NodeType(NamedTuple):
    """What the nodes of one pool have in common. Memory in GiB, of a GPU in MiB as feature discovery has it."""

    prefix: str
    share: float  # of all nodes
    instance: str
    cpus: int
    memory: int
    gpus: int = 0
    product: str = ""
    gpu_memory: int = 0
    family: str = ""


TYPES = (
    NodeType("a100", 0.5, "p4de.24xlarge", 96, 1152, 8, "NVIDIA-A100-SXM4-80GB", 81920, "ampere"),
    NodeType("h100", 0.3, "p5.48xlarge", 192, 2048, 8, "NVIDIA-H100-80GB-HBM3", 81559, "hopper"),
    NodeType("l40s", 0.1, "g6e.24xlarge", 96, 768, 4, "NVIDIA-L40S", 46068, "ada-lovelace"),
    NodeType("cpu", 0.1, "m6i.32xlarge", 128, 512),
)
UNSUITABLE = 10  # of each type: so many are cordoned, and so many more are not ready


def nodes(count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` nodes of the types above; of each type the first are cordoned, the next ones not ready."""
    for kind in TYPES:
        for index in range(round(count * kind.share)):
            yield node(kind, index)


def node(kind: NodeType, index: int) -> dict[str, Any]:
    """Return one node with its status, as a kubelet registers it."""
    name = f"{kind.prefix}-{index:05d}"
    address = f"10.{len(kind.prefix) + len(kind.product)}.{index // 250}.{index % 250 + 1}"
    cordoned, ready = index < UNSUITABLE, not UNSUITABLE <= index < 2 * UNSUITABLE
    taints = [("nvidia.com/gpu", bool(kind.gpus))]
    taints += [("node.kubernetes.io/unschedulable", cordoned), ("node.kubernetes.io/unreachable", not ready)]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels(kind, name, index),
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {
            "providerID": f"aws:///us-east-1a/i-{index:017x}",
            "podCIDR": "10.244.0.0/24",
            "taints": [{"key": key, "effect": "NoSchedule"} for key, holds in taints if holds],
            "unschedulable": cordoned,
        },
        "status": {
            "capacity": resources(kind, reserved=0),
            "allocatable": resources(kind, reserved=1),
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": conditions(ready),
            "nodeInfo": {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "bootID": f"{index:032x}",
                "machineID": f"{index:032x}",
                "systemUUID": f"{index:032x}",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.8.0-1033-aws",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "osImage": "Ubuntu 24.04.3 LTS",
            },
        },
    }


def labels(kind: NodeType, name: str, index: int) -> dict[str, str]:
    """Return the labels of a kubelet, of a cloud, and those of GPU feature discovery."""
    common = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": kind.instance,
        "topology.kubernetes.io/region": "us-east-1",
        "topology.kubernetes.io/zone": f"us-east-1{'abc'[index % 3]}",
    }
    if not kind.gpus:
        return common
    return common | {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(kind.gpus),
        "nvidia.com/gpu.product": kind.product,
        "nvidia.com/gpu.memory": str(kind.gpu_memory),
        "nvidia.com/gpu.family": kind.family,
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/mig.capable": "true" if kind.gpu_memory > 80000 else "false",
        "nvidia.com/mig.strategy": "single",
        "nvidia.com/cuda.driver-version.full": "570.172.08",
        "nvidia.com/cuda.runtime-version.full": "12.8",
    }


def resources(kind: NodeType, reserved: int) -> dict[str, str]:
    """Return quantities as a kubelet writes them; `reserved` CPUs and 8 GiB for each are the system's."""
    memory = kind.memory * 1024 * 1024 - 521_116 - reserved * 8 * 1024 * 1024  # the kernel keeps some
    base = {
        "cpu": f"{kind.cpus * 1000 - reserved * 170}m" if reserved else str(kind.cpus),
        "memory": f"{memory}Ki",
        "ephemeral-storage": "7562890Mi",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "pods": "110",
    }
    return base | ({"nvidia.com/gpu": str(kind.gpus)} if kind.gpus else {})


def conditions(ready: bool) -> list[dict[str, str]]:
    """Return the four conditions that every kubelet reports; one that fell silent is Unknown."""
    when = {"lastHeartbeatTime": "2026-01-05T10:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    pressures = [
        {
            "type": f"{what}Pressure",
            "status": "False",
            "reason": f"KubeletHasNo{what}Pressure",
            "message": "none",
            **when,
        }
        for what in ("Memory", "Disk", "PID")
    ]
    state = ("True", "KubeletReady") if ready else ("Unknown", "NodeStatusUnknown")
    return [*pressures, {"type": "Ready", "status": state[0], "reason": state[1], "message": "kubelet", **when}]
