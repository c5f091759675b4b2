"""SLURM's ``--json``: ``sinfo --json`` of 22.05, ``sinfo`` and ``scontrol show nodes|partitions --json`` of 24.11.

Read where somebody saved it; a cluster is asked for text (see `slurm_text`). Only the needed fields are decoded. A
number is a bare one in 22.05 and ``{"set": true, "infinite": false, "number": 60}`` later; lists were text with commas.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fullft_cluster.inventory import json_text
from fullft_cluster.inventory.nouns import Partition
from fullft_cluster.inventory.pooling import Node
from fullft_cluster.inventory.slurm_text import allowed, words


class _Number(msgspec.Struct, frozen=True):
    set: bool = True
    infinite: bool = False
    number: int = 0


_Count = _Number | int | None
_Texts = list[str] | str


class _JsonNode(msgspec.Struct, frozen=True):
    name: str
    state: _Texts
    cpus: int = 0
    real_memory: int = 0
    gres: str = ""
    partitions: _Texts = ""
    state_flags: list[str] = []
    effective_cpus: int | None = None
    specialized_memory: int | None = None
    specialized_cores: int | None = None
    threads: int | None = None
    features: _Texts = ""
    active_features: _Texts = ""


class _Names(msgspec.Struct, frozen=True):
    allowed: str = ""
    deny: str = ""
    assigned: str = ""


class _NodesOf(msgspec.Struct, frozen=True):
    total: int = 0


class _Maximums(msgspec.Struct, frozen=True):
    time: _Count = None
    nodes: _Count = None
    cpus_per_node: _Count = None
    partition_memory_per_node: _Count = None


class _Defaults(msgspec.Struct, frozen=True):
    time: _Count = None


class _Priority(msgspec.Struct, frozen=True):
    tier: int = 1


class _StateOf(msgspec.Struct, frozen=True):
    state: _Texts = ()  # type: ignore[assignment]


class _JsonPartition(msgspec.Struct, frozen=True):
    name: str
    nodes: _NodesOf = _NodesOf()
    maximums: _Maximums = _Maximums()
    defaults: _Defaults = _Defaults()
    accounts: _Names = _Names()
    groups: _Names = _Names()
    qos: _Names = _Names()
    priority: _Priority = _Priority()
    partition: _StateOf = _StateOf()


class _Extent(msgspec.Struct, frozen=True):
    minimum: int = 0


class _RowNodes(msgspec.Struct, frozen=True):
    nodes: list[str] = []


class _RowCpus(msgspec.Struct, frozen=True):
    minimum: int = 0


class _RowTexts(msgspec.Struct, frozen=True):
    total: str = ""
    active: str = ""


class _Row(msgspec.Struct, frozen=True):
    """A row of ``sinfo --json`` from 23.02 on: the nodes of one partition that are in one state."""

    node: _StateOf
    nodes: _RowNodes
    cpus: _RowCpus
    memory: _Extent
    features: _RowTexts
    gres: _RowTexts
    partition: _JsonPartition


class _Version(msgspec.Struct, frozen=True):
    release: str = ""


class _Meta(msgspec.Struct, frozen=True):
    slurm: _Version | None = None
    Slurm: _Version | None = None


class Document(msgspec.Struct, frozen=True):
    """Any of the answers."""

    nodes: list[_JsonNode] = []
    partitions: list[_JsonPartition] = []
    sinfo: list[_Row] = []
    meta: _Meta = _Meta()

    @property
    def version(self) -> str:
        """Return SLURM's version."""
        found = self.meta.slurm or self.meta.Slurm
        return found.release if found else ""


def decode(data: bytes) -> Document:
    """Decode an answer. Raises msgspec.DecodeError for what is none."""
    return json_text.decode(data, Document)


def nodes(document: Document) -> Iterator[Node]:
    """Yield the nodes of an answer."""
    for node in document.nodes:
        spare = (node.specialized_cores or 0) * (node.threads or 1)
        yield Node(
            name=node.name,
            gres=node.gres,
            state="+".join([*_list(node.state), *node.state_flags]),
            cpus=node.effective_cpus or max(0, node.cpus - spare),
            memory_mib=max(0, node.real_memory - (node.specialized_memory or 0)),
            partitions=",".join(_list(node.partitions)),
            features=",".join(_list(node.active_features) or _list(node.features)),
        )
    yield from _nodes_of_rows(document.sinfo)


def _nodes_of_rows(rows: list[_Row]) -> Iterator[Node]:
    """Yield the nodes of sinfo's rows, each once, with all its partitions."""
    found: dict[str, tuple[_Row, list[str]]] = {}
    for row in rows:
        for name in row.nodes.nodes:
            found.setdefault(name, (row, []))[1].append(row.partition.name)
    for name, (row, named) in found.items():
        yield Node(
            name=name,
            gres=row.gres.total,
            state="+".join(_list(row.node.state)),
            cpus=row.cpus.minimum,
            memory_mib=row.memory.minimum,
            partitions=",".join(named),
            features=row.features.active or row.features.total,
        )


def partitions(document: Document) -> tuple[Partition, ...]:
    """Return the partitions of an answer. SLURM's JSON does not say which is the default one."""
    found = {row.partition.name: row.partition for row in document.sinfo}
    found |= {partition.name: partition for partition in document.partitions}
    return tuple(_partition(partition) for partition in found.values())


def _partition(partition: _JsonPartition) -> Partition:
    limit, default = _count(partition.maximums.time), _count(partition.defaults.time)
    return Partition(
        name=partition.name,
        up=_list(partition.partition.state) in (["UP"], []),
        nodes=partition.nodes.total,
        time_limit_seconds=limit * 60 if limit is not None else None,
        default_time_seconds=default * 60 if default else None,
        max_nodes=_count(partition.maximums.nodes),
        max_cpus_per_node=_count(partition.maximums.cpus_per_node) or None,
        max_memory_gib=(_count(partition.maximums.partition_memory_per_node) or 0) / 1024 or None,
        qos=partition.qos.assigned or None,
        priority_tier=partition.priority.tier,
        allow_accounts=allowed(partition.accounts.allowed),
        deny_accounts=words(partition.accounts.deny),
        allow_qos=allowed(partition.qos.allowed),
        deny_qos=words(partition.qos.deny),
        allow_groups=allowed(partition.groups.allowed),
    )


def _count(value: _Count) -> int | None:
    """Return a number; None where it is infinite or not set."""
    if isinstance(value, _Number):
        return value.number if value.set and not value.infinite else None
    return value


def _list(value: _Texts) -> list[str]:
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return list(value)
