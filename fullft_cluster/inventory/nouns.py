"""The noun Inventory: what nodes there are, in how many pools of equal ones, and which partitions lead to them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.inventory import json_text
from fullft_cluster.plan import Frozen

Count = Annotated[int, Meta(ge=0, le=10**15)]
Amount = Annotated[float, Meta(ge=0, le=10**15)]


class Pool(Frozen, frozen=True, kw_only=True):
    """Nodes that are the same to a job: GPUs, CPUs, memory, partitions and features."""

    gpu_type: str | None
    """As the scheduler says: ``a100``, ``NVIDIA-A100-SXM4-80GB``; None for GPUs without a type, and without GPUs."""
    gpu: str | None
    """Name in configs/gpus.yaml; None where the type is not in that table, or its memory is not said."""
    candidates: tuple[str, ...] = ()
    """The names in the table that the type may mean, the least memory first."""
    note: str = ""
    """Why ``gpu`` is what it is."""
    gpus_per_node: Count
    """0 on nodes without GPUs."""
    nodes: Count
    nodes_up: Count
    """Nodes that jobs may be sent to: not down, draining, failing, under maintenance or silent."""
    nodes_idle: Count | None
    """Nodes up, in no reservation, on which no job runs at the time of asking; None where the scheduler is silent."""
    nodes_reserved: Count = 0
    """Nodes up that are in a reservation now."""
    cpus_per_node: Count
    """CPUs that jobs may have, as the scheduler counts them (threads, where those are its CPUs)."""
    host_memory_gib: Amount
    """Memory that jobs may have, in GiB."""
    partitions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    """SLURM's node features; labels of a Kubernetes node that say what it is."""
    taints: tuple[str, ...] = ()
    """Taints that a pod has to tolerate: ``nvidia.com/gpu=present:NoSchedule``."""
    names: str
    """The nodes as a compressed list: ``gpu[001-004,007]``."""


class Partition(Frozen, frozen=True, kw_only=True):
    """A partition of SLURM. None means no limit, ALL, or not said."""

    name: str
    default: bool = False
    up: bool = True
    """Jobs may be submitted and start."""
    nodes: Count
    time_limit_seconds: Count | None
    default_time_seconds: Count | None = None
    max_nodes: Count | None = None
    """Nodes of one job."""
    max_cpus_per_node: Count | None = None
    max_memory_gib: Amount | None = None
    """Of one node."""
    qos: str | None = None
    """The partition's own QOS, whose limits bind every job in it."""
    priority_tier: Count = 1
    preempt_mode: str | None = None
    root_only: bool = False
    hidden: bool = False
    allow_accounts: tuple[str, ...] | None = None
    deny_accounts: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] | None = None
    deny_qos: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] | None = None


class Qos(Frozen, frozen=True, kw_only=True):
    """A QOS of SLURM: the limits that bear on a single job. None means no limit."""

    name: str
    max_wall_seconds: Count | None = None
    gpus: dict[str, Count] = msgspec.field(default_factory=dict)
    """The most GPUs of one job by type, ``""`` for any: the least of MaxTRES, MaxTRESPU and GrpTRES."""
    max_nodes: Count | None = None
    """The most nodes of one job, likewise."""


class Access(Frozen, frozen=True, kw_only=True):
    """What the one who asked may use; None where the scheduler did not say."""

    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None


class Inventory(Frozen, frozen=True, kw_only=True):
    """What a cluster has, as its scheduler told it."""

    source: Literal["slurm", "kubernetes"]
    version: str = ""
    """Of the scheduler: ``24.11.5``; empty where it was not said."""
    pools: tuple[Pool, ...]
    partitions: tuple[Partition, ...] = ()
    qos: tuple[Qos, ...] = ()
    access: Access = Access()

    def to_json(self) -> bytes:
        """Return the inventory as indented JSON, with a final newline: what ``--inventory FILE`` takes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def from_json(data: bytes, where: str = "inventory") -> Inventory:
        """Read what `to_json` wrote. Raises UsageError for anything else; ``where`` names the file."""
        try:
            return json_text.decode(data, Inventory)
        except msgspec.DecodeError as error:
            fix = "Make it by `fullft-cluster inventory --json > FILE`."
            raise UsageError(Problem(where, f"is not an inventory: {error}", fix)) from None
