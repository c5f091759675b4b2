"""From an inventory to clusters that a plan can be laid on: a profile's figures on nodes that exist.

A job stays in one kind of nodes and in one partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster
from fullft_cluster.inventory.access import Bounds, asked_partitions, bounds, count, hints, refusal
from fullft_cluster.inventory.choice import Question, constraint, gpu_of, profile_for, slurm_gpu_type
from fullft_cluster.inventory.features import has_features
from fullft_cluster.inventory.nouns import Inventory, Partition, Pool
from fullft_cluster.plan import Frozen
from fullft_cluster.units import duration

KEPT_SHARE = 0.03
"""Of a node's memory, not planned with: what grows outside a job's own count, as page tables and slab. A default."""


ENDLESS = float("inf")


LEAST_GIB = 1
"""Less is no node's memory: SLURM's RealMemory is 1 MB where it is not configured."""


class Site(Frozen, frozen=True, kw_only=True):
    """Where a plan can be laid."""

    cluster: Cluster
    """The profile, with the figures of nodes that exist."""
    partition: str | None
    """As ``sbatch --partition`` takes it; None on Kubernetes, and where the scheduler's default has to do."""
    time_limit_seconds: int | None
    """Of one attempt; None without a limit."""
    limit_known: bool = True
    """False where the inventory says nothing of the partition."""
    nodes_idle: int | None
    """Nodes on which nothing runs, at the time of asking; None where the scheduler does not say."""
    constraint: str | None
    """A feature for ``sbatch --constraint`` that keeps the job off nodes whose GPUs have the same type and another
    memory; None where there are none, or the user gave a constraint."""
    notes: tuple[str, ...]
    """Sentences for the user: what limits the choice, what was guessed."""


def sites(inventory: Inventory, profile: Cluster, config: Config, *, chosen: bool = False) -> list[Site]:
    """Return the sites of an inventory: those with the profile's GPU first, of them those in the default partition,
    then those with most GPUs.

    ``chosen``: the user named the profile, so only nodes with its GPU will do; else nodes with other GPUs take the
    figures of the shipped profile for those. Raises UsageError where no site is left (an unknown or closed partition,
    one without GPUs, no node with the GPU, none up), saying what there is instead.
    """
    asked = Question(inventory, profile, config, chosen)
    names = asked_partitions(inventory, config, gpus=not asked.on_cpus)
    found: list[Site] = []
    passed_over: dict[str, None] = {}
    for kind in _kinds(asked, names):
        gpu, note = gpu_of(asked, kind[0])
        if gpu is None:
            passed_over[note] = None
            continue
        made = list(_of_kind(asked, kind, gpu, note, names))
        found += made
        if not made:
            passed_over[f"no node of {kind[0].names} is up in a partition that is open to you"] = None
    if not found:
        raise UsageError(_nothing(asked, list(passed_over)))
    default = {partition.name for partition in inventory.partitions if partition.default}
    return sorted(found, key=lambda site: (site.cluster.gpu != profile.gpu, site.partition not in default))


def _kinds(asked: Question, names: tuple[str, ...]) -> Iterator[list[Pool]]:
    """Yield pools of one kind of GPU and as many of them in a node, though in different partitions, most GPUs first."""
    kinds: dict[tuple[object, ...], list[Pool]] = {}
    for pool in asked.inventory.pools:
        if names and not set(names) & set(pool.partitions):
            continue
        wanted = asked.profile.slurm_gpu_type if asked.on_cpus else None
        if not (asked.on_cpus or pool.gpus_per_node) or wanted not in (None, pool.gpu_type):
            continue
        if not has_features(pool.features, asked.config.slurm.constraint):
            continue
        key = () if asked.on_cpus else (pool.gpu_type, pool.gpus_per_node, pool.candidates)
        kinds.setdefault(key, []).append(pool)
    yield from sorted(kinds.values(), key=lambda kind: -sum(pool.nodes_up * pool.gpus_per_node for pool in kind))


def _of_kind(asked: Question, kind: list[Pool], gpu: str, note: str, names: tuple[str, ...]) -> Iterator[Site]:
    """Yield the sites of a kind of nodes: of its best partition, and of others only where those have more nodes."""
    most = 0
    longer = _longer(asked, kind, names)
    for partitions in _choices(asked, kind, names):
        here = {partition.name for partition in partitions}
        pools = [pool for pool in kind if not here or here & set(pool.partitions)]
        limits = bounds(partitions, asked.inventory, asked.config, kind[0].gpu_type)
        made = [(site, large) for site, large in _of_sizes(asked, pools, gpu, limits) if site.cluster.max_nodes > most]
        for site, large in made:
            given = asked.config.slurm.partition if names else None
            named = given or (partitions[0].name if partitions else None)
            feature, warning = constraint(asked, large, gpu, here)
            notes = (note, warning, *_notes(asked, large, partitions), *site.notes, "" if most else longer)
            yield msgspec.structs.replace(
                site, partition=named, constraint=feature, notes=tuple(text for text in notes if text)
            )
        most = max([most, *(site.cluster.max_nodes for site, _ in made)])


def _choices(asked: Question, kind: list[Pool], names: tuple[str, ...]) -> Iterator[list[Partition]]:
    """Yield the partitions that lead to a kind of nodes, the best first: the default one, then the longest limits."""
    there = {name for pool in kind for name in pool.partitions if pool.nodes_up}
    described = [partition for partition in asked.inventory.partitions if partition.name in there]
    if names:
        yield [partition for partition in described if partition.name in names]
    elif not asked.inventory.partitions:
        yield []
    else:
        usable = [p for p in described if not refusal(p, asked.inventory, asked.config)]
        yield from (
            [partition]
            for partition in sorted(
                usable,
                key=lambda p: (not p.default, -(ENDLESS if p.time_limit_seconds is None else p.time_limit_seconds)),
            )
        )


def _longer(asked: Question, kind: list[Pool], names: tuple[str, ...]) -> str:
    """Return which partition has the same nodes for longer than the one that comes first, if one does."""
    choices = [] if names else [choice[0] for choice in _choices(asked, kind, names) if choice]
    if len(choices) < 2 or choices[0].time_limit_seconds is None:
        return ""
    first, second = choices[:2]
    nodes = [
        sum(_free(asked, pool) for pool in kind if partition.name in pool.partitions) for partition in (first, second)
    ]
    limit = second.time_limit_seconds
    if nodes[1] < nodes[0] or (limit is not None and limit <= choices[0].time_limit_seconds):
        return ""
    how_long = "without a limit" if limit is None else f"for {duration(limit)}"
    return f"partition {second.name} has these nodes {how_long}: give --partition {second.name} for fewer requeues"


def _of_sizes(asked: Question, pools: list[Pool], gpu: str, limits: Bounds) -> Iterator[tuple[Site, list[Pool]]]:
    """Yield a site for each size of node, the smallest first, with the pools of nodes that are at least so large."""
    if 0 in (limits.max_nodes, limits.max_gpus):  # a partition or QOS that is closed in this way
        return
    last = 0
    sizes = sorted({(pool.host_memory_gib, pool.cpus_per_node) for pool in pools}, reverse=True)
    made = []
    for memory, cpus in sizes:
        large = [pool for pool in pools if pool.host_memory_gib >= memory and pool.cpus_per_node >= cpus]
        nodes = sum(_free(asked, pool) for pool in large)
        if nodes > last:
            made.append((_site(asked, large, gpu, limits, nodes), large))
            last = nodes
    yield from reversed(made)


def _free(asked: Question, pool: Pool) -> int:
    """Return the nodes of a pool that a job may get: those in a reservation only for one that names it."""
    return pool.nodes_up if asked.config.slurm.reservation else pool.nodes_up - pool.nodes_reserved


def _site(asked: Question, pools: list[Pool], gpu: str, limits: Bounds, nodes: int) -> Site:
    profile, first = profile_for(asked, gpu), pools[0]
    per_node = profile.gpus_per_node if gpu == CPU else first.gpus_per_node
    share = 1.0
    if limits.max_gpus is not None and limits.max_gpus < per_node:
        share, per_node = limits.max_gpus / per_node, limits.max_gpus
    most = [nodes, limits.max_nodes, limits.max_gpus // per_node if limits.max_gpus else None]
    if asked.chosen:  # a bound that its author set
        most.append(profile.max_nodes)
    memory = min([*(m for pool in pools if (m := pool.host_memory_gib) >= LEAST_GIB), limits.memory_gib or ENDLESS])
    cpus = min([pool.cpus_per_node for pool in pools] + [limits.cpus or ENDLESS])
    memory = (1 - KEPT_SHARE) * memory if memory < ENDLESS else profile.host_memory_gib
    idle = [pool.nodes_idle for pool in pools]
    cluster = msgspec.structs.replace(
        profile,
        gpu=gpu,
        gpus_per_node=per_node,
        max_nodes=min(number for number in most if number is not None),
        cpus_per_node=max(1, int(share * cpus)),
        host_memory_gib=max(0.1, round(share * memory, 1)),
        slurm_gpu_type=slurm_gpu_type(asked, first),
    )
    return Site(
        cluster=cluster,
        partition=None,
        time_limit_seconds=limits.time_limit_seconds,
        limit_known=limits.known,
        nodes_idle=sum(number or 0 for number in idle) if None not in idle else None,
        constraint=None,
        notes=limits.notes,
    )


def _notes(asked: Question, pools: list[Pool], partitions: list[Partition]) -> Iterator[str]:
    """Yield what the user should know of the nodes of a site."""
    up = sum(pool.nodes_up for pool in pools)
    if asked.chosen and asked.profile.max_nodes < up:
        yield f"the profile {asked.profile.name} allows {count(asked.profile.max_nodes, 'node')}"
    if asked.inventory.source == "kubernetes":
        yield "how many of their GPUs are free now is not known"
    if any(pool.host_memory_gib < LEAST_GIB for pool in pools):
        yield "the memory of some of them is not said, and taken to be that of the others, or of the profile"
    yield f"{up} of {count(sum(pool.nodes for pool in pools), 'node')} up: {','.join(pool.names for pool in pools)}"
    reserved = sum(pool.nodes_reserved for pool in pools)
    if reserved and not asked.config.slurm.reservation:
        yield f"{reserved} of them are reserved: give --set slurm.reservation=NAME if that is for you"
    taints = sorted({taint for pool in pools for taint in pool.taints})
    if taints:
        yield f"pods there have to tolerate {', '.join(taints)}"
    if asked.inventory.source == "slurm" and not partitions:
        yield "the inventory does not say what the partitions allow"
    for partition in partitions:
        yield from hints(partition, asked.inventory, asked.config)
        shown = sum(pool.nodes for pool in asked.inventory.pools if partition.name in pool.partitions)
        if shown < partition.nodes:
            hidden = partition.nodes - shown
            yield f"partition {partition.name} has {count(hidden, 'node')} more, hidden while powered down"


def _nothing(asked: Question, reasons: Iterable[str]) -> Problem:
    """Say why no site is left."""
    wanted = (
        "no node" if asked.on_cpus else f"no node with a {asked.profile.gpu}" if asked.chosen else "no node with a GPU"
    )
    where = (
        "slurm.constraint"
        if asked.config.slurm.constraint
        else "slurm.partition"
        if asked.config.slurm.partition
        else ""
    )
    told = "; ".join(list(reasons)[:5])
    what = f"{wanted} that we know is up and open to you{f': {told}' if told else ''}"
    return Problem(where or "inventory", what, "See what there is by `fullft-cluster inventory`.")
