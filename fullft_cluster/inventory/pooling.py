"""From nodes to pools. Nodes are first counted by the scheduler's own words, so that ten thousand cost little."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
_GRES = re.compile(r"gpu(?::([^:,()=]+))?(?::(\d+))?$")
_IN_BRACKETS = re.compile(r"\([^)]*\)")
MEMORY_STEPS = 64
"""Memories within 1/64 of their power of two are one pool: nodes of one order report a few MB more or less."""


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
            if count is None and kind and kind.isdigit():  # gpu:4
                kind, count = None, kind
            found[kind or ""] += int(count or 1)
    return dict(found)


def pools(nodes: Iterable[Node], *, idle_known: bool = True) -> tuple[Pool, ...]:
    """Return the pools of nodes, those with most GPUs first. A node with GPUs of two types is in a pool for each."""
    table = gpus()
    alike: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for node in nodes:
        alike[node[1:]].append(node.name)
    grouped: defaultdict[tuple[object, ...], list[tuple[Node, list[str]]]] = defaultdict(list)
    for words, names in alike.items():
        node = Node(names[0], *words)  # type: ignore[arg-type]
        for kind, count in gpu_counts(node.gres).items() or (("", 0),):
            key = (kind, count, node.cpus, _coarse(node.memory_mib), node.partitions, node.features, node.taints)
            grouped[*key, _coarse(node.gpu_memory_mib)].append((node, names))
    made = [_pool(str(key[0]), int(str(key[1])), members, table) for key, members in grouped.items()]
    if not idle_known:
        made = [msgspec.structs.replace(pool, nodes_idle=None) for pool in made]
    return tuple(sorted(made, key=lambda pool: (-pool.gpus_per_node * pool.nodes, pool.gpu_type or "", pool.names)))


def _pool(kind: str, count: int, members: list[tuple[Node, list[str]]], table: Mapping[str, Gpu]) -> Pool:
    first = members[0][0]
    features = _split(first.features)
    told = min(node.gpu_memory_mib for node, _ in members) / 1024 or None
    found = match(kind or None, table, features, told) if count else None
    states = [(condition(node.state), len(names)) for node, names in members]
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
        host_memory_gib=round(min(node.memory_mib for node, _ in members) / 1024, 2),
        partitions=_split(first.partitions),
        features=features,
        taints=_split(first.taints),
        names=compress(name for _, names in members for name in names),
    )


def _coarse(mib: int) -> int:
    """Return an amount rounded down to a 64th of its power of two."""
    step = max(1, (1 << mib.bit_length()) // (2 * MEMORY_STEPS))
    return mib // step


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
