"""Kubernetes nodes: the JSON of ``GET /api/v1/nodes`` (``kubectl get nodes -o json``), only the needed fields of it.

GPUs are the allocatable ``nvidia.com/gpu`` of NVIDIA's device plugin; what they are is in the labels of gpu-feature-
discovery (https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md). How many of
them running pods have asked for is in the pods, not here, so which nodes are idle is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec

from fullft_cluster.inventory import json_text
from fullft_cluster.inventory.pooling import Node

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
MEMORY = "nvidia.com/gpu.memory"
"""Label: MiB of one GPU."""
KEPT_LABELS = (PRODUCT, MEMORY, "node.kubernetes.io/instance-type", "nvidia.com/mig.strategy")
_NOT_READY = frozenset(
    {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/network-unavailable",
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/uninitialized",
        "node.cloudprovider.kubernetes.io/shutdown",
    }
)
"""Taints that say a node is out of order, not whose it is (kubernetes.io/docs/reference/labels-annotations-taints)."""
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)(?:([eE][-+]?[0-9]+)|([KMGTPE]i|[numkMGTPE])?)")
MOST = 2.0**63
"""Of a quantity; what is more is none."""
_POWERS = {
    **{name: 10.0**power for name, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)},
    **{f"{name}i": 1024.0**power for power, name in enumerate("KMGTPE", 1)},
}


class _Taint(msgspec.Struct, frozen=True):
    key: str
    effect: str
    value: str = ""


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True):
    unschedulable: bool = False
    taints: list[_Taint] = []


class _Status(msgspec.Struct, frozen=True):
    allocatable: dict[str, str | int] = {}
    conditions: list[_Condition] = []


class _KubeNode(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _ListMeta(msgspec.Struct, frozen=True, rename={"next": "continue"}):
    next: str = ""


class NodeList(msgspec.Struct, frozen=True):
    """One page of nodes."""

    items: list[_KubeNode]
    metadata: _ListMeta = _ListMeta()
    """``next`` asks for the page after this one; empty on the last."""


def decode(data: bytes) -> NodeList:
    """Decode a page. Raises msgspec.DecodeError for what is none."""
    return json_text.decode(data, NodeList)


@lru_cache(maxsize=4096)
def quantity(text: str | int) -> float:
    """Return a Kubernetes quantity (``500m``, ``1056275280Ki``, ``1e3``) as a number; 0 for what is none.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    found = _QUANTITY.fullmatch(str(text))
    if not found:
        return 0.0
    number, exponent, unit = found.groups()
    value = float(number + exponent) if exponent else float(number) * _POWERS.get(unit, 1.0)
    return value if value < MOST else 0.0


def nodes(items: Iterable[_KubeNode]) -> Iterator[Node]:
    """Yield the nodes of a page."""
    for item in items:
        labels, there = item.metadata.labels, item.status.allocatable
        keep = [taint for taint in item.spec.taints if taint.effect in ("NoSchedule", "NoExecute")]
        ready = any(c.type == "Ready" and c.status == "True" for c in item.status.conditions)
        up = ready and not item.spec.unschedulable and not any(taint.key in _NOT_READY for taint in keep)
        count = int(quantity(there.get(GPU, 0)))
        product = re.sub(r"[,:()=\s]", "-", labels.get(PRODUCT, ""))
        yield Node(
            name=item.metadata.name,
            gres=f"gpu:{product}:{count}" if product and count else f"gpu:{count}" if count else "",
            state="UP" if up else "DOWN",
            cpus=int(quantity(there.get("cpu", 0))),
            memory_mib=int(quantity(there.get("memory", 0)) / 2**20),
            partitions="",
            features=",".join(f"{name}={labels[name]}" for name in KEPT_LABELS if labels.get(name)),
            taints=",".join(sorted(_taint(taint) for taint in keep if taint.key not in _NOT_READY)),
            gpu_memory_mib=int(quantity(labels.get(MEMORY, 0))) if count else 0,
        )


def _taint(taint: _Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"
