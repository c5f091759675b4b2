"""From an inventory to clusters that a plan can be laid on: a profile's figures on nodes that exist.

A job stays in one kind of nodes and in one partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster, clusters, load_cluster
from fullft_cluster.inventory.access import Bounds, asked_partitions, bounds, count, hints, refusal
from fullft_cluster.inventory.features import has_features
from fullft_cluster.inventory.gpu_names import cut, memory_gb
from fullft_cluster.inventory.nouns import Inventory, Partition, Pool
from fullft_cluster.plan import Frozen

KEPT_SHARE = 0.03
"""Of a node's memory, not planned with: what grows outside a job's own count, as page tables and slab. A default."""


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


@dataclass(frozen=True)
class _Question:
    inventory: Inventory
    profile: Cluster
    config: Config
    chosen: bool

    @property
    def on_cpus(self) -> bool:
        """Return whether the nodes are wanted for their CPUs."""
        return self.chosen and self.profile.gpu == CPU


def sites(inventory: Inventory, profile: Cluster, config: Config, *, chosen: bool = False) -> list[Site]:
    """Return the sites of an inventory: those with the profile's GPU first, of them those in the default partition,
    then those with most GPUs.

    ``chosen``: the user named the profile, so only nodes with its GPU will do; else nodes with other GPUs take the
    figures of the shipped profile for those. Raises UsageError where no site is left (an unknown or closed partition,
    one without GPUs, no node with the GPU, none up), saying what there is instead.
    """
    asked = _Question(inventory, profile, config, chosen)
    names = asked_partitions(inventory, config, gpus=not asked.on_cpus)
    found: list[Site] = []
    passed_over: dict[str, None] = {}
    for kind in _kinds(asked, names):
        gpu, note = _gpu(asked, kind[0])
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


def _kinds(asked: _Question, names: tuple[str, ...]) -> Iterator[list[Pool]]:
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


def _gpu(asked: _Question, pool: Pool) -> tuple[str | None, str]:
    """Return the GPU of a pool in our table and how that was found, or None and why not."""
    profile, of = asked.profile, f"{asked.inventory.source}'s GPU {pool.gpu_type or 'without a type'}"
    if asked.on_cpus:
        return CPU, ""
    if pool.gpu is not None and not asked.chosen:
        return pool.gpu, ""
    if pool.gpu is not None and profile.gpu in pool.candidates:
        return profile.gpu, ""
    if profile.gpu in pool.candidates:
        others = " or ".join(name for name in pool.candidates if name != profile.gpu)
        how = f"as the profile {profile.name} says" if asked.chosen else f"as in the default profile {profile.name}"
        return profile.gpu, f"{of} is taken for {profile.gpu}, {how}; for {others}, name a profile by --cluster"
    if asked.chosen and not pool.candidates and pool.gpu_type in (None, profile.slurm_gpu_type):
        return profile.gpu, f"{of} is taken for {profile.gpu}, as the profile {profile.name} says"
    if asked.chosen and pool.candidates:
        return (
            None,
            f"{pool.names} has {' or '.join(pool.candidates)}, and the profile {profile.name} is for {profile.gpu}",
        )
    if pool.candidates:
        others = " or ".join(pool.candidates[1:])
        least = f"{of} is taken for {pool.candidates[0]}, the one with least memory"
        return pool.candidates[0], f"{least}; for {others}, name a profile by --cluster"
    return None, f"{pool.names}: {pool.note}"


def _of_kind(asked: _Question, kind: list[Pool], gpu: str, note: str, names: tuple[str, ...]) -> Iterator[Site]:
    """Yield the sites of a kind of nodes: of its best partition, and of others only where those have more nodes."""
    most = 0
    for partitions in _choices(asked, kind, names):
        here = {partition.name for partition in partitions}
        pools = [pool for pool in kind if not here or here & set(pool.partitions)]
        limits = bounds(partitions, asked.inventory, asked.config, kind[0].gpu_type)
        made = [site for site in _of_sizes(asked, pools, gpu, limits) if site.cluster.max_nodes > most]
        for site in made:
            given = asked.config.slurm.partition if names else None
            named = given or (partitions[0].name if partitions else None)
            feature, warning = _constraint(asked, pools, gpu, here)
            notes = (note, warning, *_notes(asked, pools, partitions), *site.notes)
            yield msgspec.structs.replace(
                site, partition=named, constraint=feature, notes=tuple(text for text in notes if text)
            )
        most = max([most, *(site.cluster.max_nodes for site in made)])


def _constraint(asked: _Question, pools: list[Pool], gpu: str, here: set[str]) -> tuple[str | None, str]:
    """Return a feature that keeps a job off nodes whose GPUs have its type and less memory, and words on it."""
    if asked.inventory.source != "slurm" or asked.on_cpus or asked.config.slurm.constraint:
        return None, ""
    mine = pools[0]
    others = [
        pool
        for pool in asked.inventory.pools
        if pool.gpus_per_node
        and mine.gpu_type in (pool.gpu_type, None)
        and pool.candidates != mine.candidates
        and (not here or here & set(pool.partitions))
        and (not pool.candidates or memory_gb(pool.candidates[0]) < memory_gb(gpu))
    ]
    if not others:
        return None, ""
    own = [name for name in mine.features if all(name in pool.features for pool in pools)]
    only = [name for name in own if not any(name in pool.features for pool in others)]
    names = ", ".join(pool.names for pool in others)
    if not only:
        return None, f"the GPUs of {names} have the same type and may have less memory: set slurm.exclude"
    feature = max(only, key=lambda name: cut(name).core in gpu and cut(name).memory_gb is not None)
    return feature, f"the GPUs of {names} have the same type and may have less memory: the job asks for {feature}"


def _choices(asked: _Question, kind: list[Pool], names: tuple[str, ...]) -> Iterator[list[Partition]]:
    """Yield the partitions that lead to a kind of nodes, the best first: the default one, then the longest limits."""
    there = {name for pool in kind for name in pool.partitions if pool.nodes_up}
    described = [partition for partition in asked.inventory.partitions if partition.name in there]
    if names:
        yield [partition for partition in described if partition.name in names]
    elif not asked.inventory.partitions:
        yield []
    else:
        usable = [p for p in described if not refusal(p, asked.inventory, asked.config)]
        endless = float("inf")
        yield from (
            [partition]
            for partition in sorted(
                usable,
                key=lambda p: (not p.default, -(endless if p.time_limit_seconds is None else p.time_limit_seconds)),
            )
        )


def _of_sizes(asked: _Question, pools: list[Pool], gpu: str, limits: Bounds) -> Iterator[Site]:
    """Yield a site for each size of node, the smallest first, with all nodes that are at least so large."""
    last = 0
    sizes = sorted({(pool.host_memory_gib, pool.cpus_per_node) for pool in pools}, reverse=True)
    made = []
    for memory, cpus in sizes:
        large = [pool for pool in pools if pool.host_memory_gib >= memory and pool.cpus_per_node >= cpus]
        nodes = sum(_free(asked, pool) for pool in large)
        if nodes > last:
            made.append(_site(asked, large, gpu, limits, nodes))
            last = nodes
    yield from reversed(made)


def _free(asked: _Question, pool: Pool) -> int:
    """Return the nodes of a pool that a job may get: those in a reservation only for one that names it."""
    return pool.nodes_up if asked.config.slurm.reservation else pool.nodes_up - pool.nodes_reserved


def _site(asked: _Question, pools: list[Pool], gpu: str, limits: Bounds, nodes: int) -> Site:
    profile, first = _profile(asked, gpu), pools[0]
    per_node = profile.gpus_per_node if gpu == CPU else first.gpus_per_node
    share = 1.0
    if limits.max_gpus is not None and limits.max_gpus < per_node:
        share, per_node = limits.max_gpus / per_node, limits.max_gpus
    most = [nodes, limits.max_nodes, limits.max_gpus // per_node if limits.max_gpus else None]
    if asked.chosen:  # a bound that its author set
        most.append(profile.max_nodes)
    memory = min(pool.host_memory_gib for pool in pools)
    idle = [pool.nodes_idle for pool in pools]
    cluster = msgspec.structs.replace(
        profile,
        gpu=gpu,
        gpus_per_node=per_node,
        max_nodes=min(number for number in most if number is not None),
        cpus_per_node=max(1, int(share * min(pool.cpus_per_node for pool in pools))),
        host_memory_gib=round(share * (1 - KEPT_SHARE) * memory, 1),
        slurm_gpu_type=_slurm_gpu_type(asked, first),
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


def _slurm_gpu_type(asked: _Question, pool: Pool) -> str | None:
    if asked.on_cpus:
        return asked.profile.slurm_gpu_type
    return pool.gpu_type if asked.inventory.source == "slurm" else None


def _profile(asked: _Question, gpu: str) -> Cluster:
    """Return the profile whose bandwidths and environment hold for a GPU: the given one, or the shipped one for it."""
    if asked.chosen or asked.profile.gpu == gpu:
        return asked.profile
    if gpu in clusters():
        return load_cluster(gpu)
    shipped = (load_cluster(name) for name in clusters())
    return next((profile for profile in shipped if profile.gpu == gpu), asked.profile)


def _notes(asked: _Question, pools: list[Pool], partitions: list[Partition]) -> Iterator[str]:
    """Yield what the user should know of the nodes of a site."""
    up = sum(pool.nodes_up for pool in pools)
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


def _nothing(asked: _Question, reasons: Iterable[str]) -> Problem:
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
