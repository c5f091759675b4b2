"""From nodes to pools. Nodes are first counted by the scheduler's own words, so that ten thousand cost little."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from fullft_cluster.hardware import Gpu, gpus
from fullft_cluster.inventory.gpu_names import match
from fullft_cluster.inventory.hostlist import compress
from fullft_cluster.inventory.nouns import Pool

UNFIT = frozenset(
    {
        "DOWN",
        "DRAIN",
        "DRAINED",
        "DRAINING",
        "ERROR",
        "FAIL",
        "FAILING",
        "FUTURE",
        "INVAL",
        "INVALID_REG",
        "MAINT",
        "MAINTENANCE",
        "NOT_RESPONDING",
        "NO_RESPOND",
        "REBOOT_ISSUED",
    }
)
"""States and flags in which a node gets no job (``man sinfo``, NODE STATE CODES). A powered down one gets one, and
UNKNOWN is what every node is until it registers with a controller that was just started."""
RESERVED = frozenset({"RESERVED", "RES", "RESV"})
_SUFFIXES = {"*": "NOT_RESPONDING", "$": "MAINT", "^": "REBOOT_ISSUED"}
"""Behind a state (``idle*``). Others: power (``~ # ! %``), a reboot when it is idle (``@``), planned (``-``)."""
_GRES = re.compile(r"gpu(?::([^:,()=]+))?(?::(\d{1,6}))?$")
_IN_BRACKETS = re.compile(r"\([^)]*\)")
SAME_SIZE = 1.02
"""Nodes whose memory is within 2 % are one pool, with the least of it: those of one order differ by a few MB."""


class Node(NamedTuple):
    """One node (or one kind of GPU in it) in a scheduler's words: all but its name is what tells it apart."""

    name: str
    gres: str
    """As SLURM writes it: ``gpu:a100:8(S:0-1),shard:16``."""
    state: str
    """``IDLE+DRAIN``, ``MIXED*``."""
    cpus: int
    memory_mib: int
    """What jobs may have."""
    partitions: str
    """Joined by commas."""
    features: str
    """Joined by commas."""
    taints: str = ""
    gpu_memory_mib: int = 0
    """Of one GPU, where it is known; else 0."""


class _Gpus(NamedTuple):
    """The GPUs of one type in nodes of one kind."""

    kind: str
    gpus: int
    node: Node
    """One of them."""
    names: list[str]


class Condition(NamedTuple):
    """What a state means to a new job."""

    up: bool
    reserved: bool
    idle: bool


def condition(state: str) -> Condition:
    """Return what a node's state means: ``IDLE+DRAIN``, ``MIXED*``, ``idle~``."""
    words = set()
    for word in state.upper().split("+"):
        name = word.rstrip("*~#!%$@^-")
        words |= {name, *(_SUFFIXES[sign] for sign in word[len(name) :] if sign in _SUFFIXES)}
    up = not words & UNFIT
    reserved = up and bool(words & RESERVED)
    return Condition(up, reserved, up and not reserved and "IDLE" in words and not words & {"PLANNED", "COMPLETING"})


def gpu_counts(gres: str) -> dict[str, int]:
    """Return the GPUs in a Gres by type, ``""`` for those without one: ``gpu:a100:8(S:0-1)`` is ``{"a100": 8}``.

    Shares of GPUs (``shard``, ``mps``) are left out. A count may be left out for one, or come with a unit
    (https://slurm.schedmd.com/slurm.conf.html, Gres), but no node has a thousand GPUs.
    """
    found: dict[str, int] = defaultdict(int)
    for part in _IN_BRACKETS.sub("", gres).split(","):
        named = _GRES.fullmatch(part.strip().replace("gpu:no_consume", "gpu"))
        if named:
            kind, count = named.groups()
            if count is None and kind and kind.isdecimal():  # gpu:4
                kind, count = None, kind
            found[kind or ""] += int((count or "1")[:6])
    return dict(found)


def pools(nodes: Iterable[Node], *, idle_known: bool = True) -> tuple[Pool, ...]:
    """Return the pools of nodes, those with most GPUs first. A node with GPUs of two types is in a pool for each."""
    table = gpus()
    alike: dict[tuple[object, ...], tuple[Node, list[str]]] = {}
    for node in nodes:
        alike.setdefault(node[1:], (node, []))[1].append(node.name)
    grouped: defaultdict[tuple[object, ...], list[_Gpus]] = defaultdict(list)
    for node, names in alike.values():
        for kind, count in gpu_counts(node.gres).items() or (("", 0),):
            key = (kind, count, node.cpus, node.partitions, node.features, node.taints, node.gpu_memory_mib)
            grouped[key].append(_Gpus(kind, count, node, names))
    made = [_pool(members, table) for group in grouped.values() for members in _by_size(group)]
    if not idle_known:
        made = [msgspec.structs.replace(pool, nodes_idle=None) for pool in made]
    return tuple(sorted(made, key=lambda pool: (-pool.gpus_per_node * pool.nodes, pool.gpu_type or "", pool.names)))


def _pool(members: list[_Gpus], table: Mapping[str, Gpu]) -> Pool:
    """Return the pool of members that differ in state and a little in memory, the one with the least memory first."""
    kind, count, first, _ = members[0]
    features = _split(first.features)
    told = first.gpu_memory_mib / 1024 or None
    found = match(kind or None, table, features, told) if count else None
    states = [(condition(member.node.state), len(member.names)) for member in members]
    return Pool(
        gpu_type=kind or None,
        gpu=found.gpu if found else None,
        candidates=found.candidates if found else (),
        note=found.note if found else "no GPUs",
        gpus_per_node=count,
        nodes=sum(number for _, number in states),
        nodes_up=sum(number for state, number in states if state.up),
        nodes_idle=sum(number for state, number in states if state.idle),
        nodes_reserved=sum(number for state, number in states if state.reserved),
        cpus_per_node=first.cpus,
        host_memory_gib=round(first.memory_mib / 1024, 2),
        partitions=_split(first.partitions),
        features=features,
        taints=_split(first.taints),
        names=compress(name for member in members for name in member.names),
    )


def _by_size(group: list[_Gpus]) -> Iterator[list[_Gpus]]:
    """Yield the members of a group by memory, the least first; those of nearly the same together."""
    members: list[_Gpus] = []
    for member in sorted(group, key=lambda each: each.node.memory_mib):
        if members and member.node.memory_mib > SAME_SIZE * members[0].node.memory_mib:
            yield members
            members = []
        members.append(member)
    if members:
        yield members


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
