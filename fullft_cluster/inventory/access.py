"""Which partitions a user's job may go to, and what limits it meets there."""

from __future__ import annotations

from collections.abc import Iterable

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.inventory.nouns import Inventory, Partition, Qos
from fullft_cluster.plan import Frozen
from fullft_cluster.units import duration


def asked_partitions(inventory: Inventory, config: Config, *, gpus: bool) -> tuple[str, ...]:
    """Return the names in ``slurm.partition``, which may be several with commas; none where it is not given.

    Raises UsageError, all problems at once: for a partition or QOS that does not exist, one that the user's jobs may
    not go to, and, with ``gpus``, one without GPUs.
    """
    slurm = config.slurm
    problems = []
    known_qos = [qos.name for qos in inventory.qos]
    if slurm.qos and known_qos and slurm.qos not in known_qos:
        problems.append(Problem("slurm.qos", f"no QOS {slurm.qos!r}", did_you_mean(slurm.qos, known_qos)))
    described = {partition.name: partition for partition in inventory.partitions}
    of_pools = {name for pool in inventory.pools for name in pool.partitions}
    with_gpus = {name for pool in inventory.pools if pool.gpus_per_node for name in pool.partitions}
    names = tuple(slurm.partition.split(",")) if slurm.partition and of_pools | set(described) else ()
    for name in names:
        if name not in of_pools and name not in described:
            open_ones = [
                key for key in of_pools | set(described) if key not in described or not described[key].root_only
            ]
            problems.append(Problem("slurm.partition", f"no partition {name!r}", did_you_mean(name, open_ones)))
        elif gpus and name not in with_gpus:
            fix = f"Partitions with GPUs: {', '.join(sorted(_open(with_gpus, inventory, config))) or 'none'}."
            problems.append(Problem("slurm.partition", f"partition {name} has no GPUs", fix))
        elif name in described and (reason := refusal(described[name], inventory, config)):
            fix = f"Open to you: {', '.join(sorted(_open(with_gpus, inventory, config))) or 'none'}."
            problems.append(Problem("slurm.partition", f"partition {name} {reason}", fix))
    if problems:
        raise UsageError(problems)
    return names


def _open(names: Iterable[str], inventory: Inventory, config: Config) -> list[str]:
    closed = {p.name for p in inventory.partitions if refusal(p, inventory, config)}
    return [name for name in names if name not in closed]


def refusal(partition: Partition, inventory: Inventory, config: Config) -> str:
    """Return why the user's job may not go to a partition, as the end of a sentence; empty where it may."""
    if not partition.up:
        return "takes no jobs now: its state is not UP"
    if partition.root_only:
        return "is for root's jobs only"
    slurm, access = config.slurm, inventory.access
    for what, asked, own, allow, deny in (
        ("account", slurm.account, access.accounts, partition.allow_accounts, partition.deny_accounts),
        ("QOS", slurm.qos, access.qos, partition.allow_qos, partition.deny_qos),
        ("group", None, access.groups, partition.allow_groups, ()),
    ):
        mine = {asked} if asked else set(own) if own is not None else None
        if mine is None:
            continue
        if allow is not None and not mine & set(allow):
            return f"takes only {_plural(what, allow)} {', '.join(allow)}"
        if mine <= set(deny) and deny:
            return f"takes no {_plural(what, deny)} {', '.join(deny)}"
    return ""


def _plural(what: str, names: tuple[str, ...]) -> str:
    return what if len(names) == 1 or what == "QOS" else f"{what}s"


def hints(partition: Partition, inventory: Inventory, config: Config) -> list[str]:
    """Return what a job has to say to be let in, where it does not say it yet."""
    found = []
    own = inventory.access.accounts
    if partition.allow_accounts is not None and config.slurm.account is None:
        mine = [name for name in partition.allow_accounts if own is None or name in own]
        if own is None or set(own) - set(mine):
            found.append(f"partition {partition.name} takes only jobs of {' or '.join(mine)}: give --account")
    if partition.allow_qos is not None and config.slurm.qos is None:
        found.append(f"partition {partition.name} takes only jobs of QOS {' or '.join(partition.allow_qos)}")
    return found


class Bounds(Frozen, frozen=True):
    """What limits one job in a partition. None means no limit."""

    time_limit_seconds: int | None = None
    max_nodes: int | None = None
    max_gpus: int | None = None
    cpus: int | None = None
    """Of one node."""
    memory_gib: float | None = None
    """Of one node."""
    known: bool = True
    """False where the inventory describes no partition."""
    notes: tuple[str, ...] = ()


def bounds(partitions: list[Partition], inventory: Inventory, config: Config, gpu_type: str | None) -> Bounds:
    """Return the least of the limits of partitions, of their QOS, and of the job's."""
    times: list[tuple[int | None, str]] = []
    nodes: list[tuple[int | None, str]] = []
    gpus: list[tuple[int | None, str]] = []
    for partition in partitions:
        times.append((partition.time_limit_seconds, f"partition {partition.name}"))
        nodes.append((partition.max_nodes, f"partition {partition.name}"))
    names = {partition.qos for partition in partitions} | {config.slurm.qos}
    for qos in (qos for qos in inventory.qos if qos.name in names):
        times.append((qos.max_wall_seconds, f"QOS {qos.name}"))
        nodes.append((qos.max_nodes, f"QOS {qos.name}"))
        gpus += [(limit, f"QOS {qos.name}") for limit in _gpu_limits(qos, gpu_type)]
    time, max_nodes, max_gpus = _least(times), _least(nodes), _least(gpus)
    notes = []
    if time:
        notes.append(f"{time[1]}: at most {duration(time[0])} an attempt")
    if max_nodes:
        notes.append(f"{max_nodes[1]}: at most {count(max_nodes[0], 'node')} a job")
    if max_gpus:
        notes.append(f"{max_gpus[1]}: at most {count(max_gpus[0], 'GPU')} a job")
    return Bounds(
        time_limit_seconds=time[0] if time else None,
        max_nodes=max_nodes[0] if max_nodes else None,
        max_gpus=max_gpus[0] if max_gpus else None,
        cpus=min((p.max_cpus_per_node for p in partitions if p.max_cpus_per_node is not None), default=None),
        memory_gib=min((p.max_memory_gib for p in partitions if p.max_memory_gib is not None), default=None),
        known=bool(partitions),
        notes=tuple(notes),
    )


def count(number: int, what: str) -> str:
    """Return ``1 node`` or ``3 nodes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _gpu_limits(qos: Qos, gpu_type: str | None) -> list[int]:
    return [limit for kind, limit in qos.gpus.items() if kind in ("", gpu_type)]


def _least(limits: list[tuple[int | None, str]]) -> tuple[int, str] | None:
    """Return the least limit and whose it is."""
    there = [(limit, whose) for limit, whose in limits if limit is not None]
    return min(there, key=lambda pair: pair[0]) if there else None
