"""What ``scontrol show node -o`` and ``scontrol show partition -o`` print, in SLURM 20.11 to 24.11.

The road by which a cluster is asked, since this text has been the same for years and says the most: 20.11 has no
``--json``, 22.05 has it in sinfo only, whose answer has no partitions, and the JSON of 24.11 does not say which
partition is the default one, hidden or for root only. It is quick as well: 0.1 to 0.2 s and 5 MB for 10,000 nodes,
where ``scontrol --json`` takes 1.2 s and 23 MB (24.11), and ``sinfo -N`` 2 to 4 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.inventory.nouns import Access, Partition, Qos
from fullft_cluster.inventory.pooling import Node
from fullft_cluster.units import slurm_time_seconds

MOST_DIGITS = 15
_FIX = "Write it by `scontrol show node -o > FILE`."
_NOTHING = frozenset({"", "(null)", "N/A", "None", "NONE"})
_ALL = frozenset({*_NOTHING, "ALL"})
_NONE = ("No nodes in the system", "No partitions in the system")
_NO_LIMIT = frozenset({*_NOTHING, "UNLIMITED", "INFINITE"})


def field(line: str, key: str) -> str:
    """Return a value of a line of ``KEY=VALUE`` words; empty where it is not said.

    The first one counts: free text that users and operators write (Comment, Reason, Extra) stands at the end.
    """
    start = 0 if line.startswith(f"{key}=") else line.find(f" {key}=") + 1
    if start == 0 and not line.startswith(f"{key}="):
        return ""
    start += len(key) + 1
    end = line.find(" ", start)
    value = line[start:end] if end >= 0 else line[start:]
    return "" if value in _NOTHING else value


def _number(text: str) -> int:
    """Return a whole number; 0 for what is none, or none that a cluster has."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else 0


def records(text: str) -> Iterator[str]:
    """Yield the records, each on a line: without ``-o`` a record goes on in indented lines."""
    yield from map(str.strip, re.sub(r"\n[ \t]+(?=\S)", " ", text).splitlines())


def nodes(text: str, where: str = "scontrol show node") -> Iterator[Node]:
    """Yield the nodes of ``scontrol show node``. Raises UsageError for a line that is not one."""
    for line in records(text):
        name = field(line, "NodeName")
        if not line or line.startswith("PartitionName=") or line in _NONE:
            continue
        if not name:
            what = f"{line[:60]!r} is not a line of `scontrol show node`"
            raise UsageError(Problem(where, what, _FIX))
        state = field(line, "State")
        if not state:
            what = f"node {name} has no State in its line"
            raise UsageError(Problem(where, what, _FIX))
        # 20.11 does not say what CoreSpecCount leaves (CPUEfctv).
        reserved = _number(field(line, "CoreSpecCount")) * (_number(field(line, "ThreadsPerCore")) or 1)
        cpus = _number(field(line, "CPUEfctv")) or max(0, _number(field(line, "CPUTot")) - reserved)
        yield Node(
            name=name,
            gres=field(line, "Gres"),
            state=state,
            cpus=cpus,
            memory_mib=max(0, _number(field(line, "RealMemory")) - _number(field(line, "MemSpecLimit"))),
            partitions=field(line, "Partitions"),
            features=field(line, "ActiveFeatures") or field(line, "AvailableFeatures"),
        )


def partitions(text: str) -> tuple[Partition, ...]:
    """Return the partitions of ``scontrol show partition``; other records are passed over."""
    return tuple(_partition(line) for line in records(text) if line.startswith("PartitionName="))


def _partition(line: str) -> Partition:
    return Partition(
        name=field(line, "PartitionName"),
        default=field(line, "Default") == "YES",
        up=field(line, "State") in ("UP", ""),
        nodes=_number(field(line, "TotalNodes")),
        time_limit_seconds=seconds(field(line, "MaxTime")),
        default_time_seconds=seconds(field(line, "DefaultTime")),
        max_nodes=None if field(line, "MaxNodes") in _NO_LIMIT else _number(field(line, "MaxNodes")),
        max_cpus_per_node=_number(field(line, "MaxCPUsPerNode")) or None,
        max_memory_gib=_number(field(line, "MaxMemPerNode")) / 1024 or None,
        qos=field(line, "QoS") or None,
        priority_tier=_number(field(line, "PriorityTier")),
        preempt_mode=field(line, "PreemptMode") or None,
        root_only=field(line, "RootOnly") == "YES",
        hidden=field(line, "Hidden") == "YES",
        allow_accounts=allowed(field(line, "AllowAccounts")),
        deny_accounts=words(field(line, "DenyAccounts")),
        allow_qos=allowed(field(line, "AllowQos")),
        deny_qos=words(field(line, "DenyQos")),
        allow_groups=allowed(field(line, "AllowGroups")),
    )


def seconds(text: str) -> int | None:
    """Return a SLURM time in seconds; None for no limit, and for what is no time."""
    if text in _NO_LIMIT:
        return None
    try:
        return slurm_time_seconds(text)
    except ValueError:
        return None


def words(text: str) -> tuple[str, ...]:
    """Return a list with commas."""
    return () if text in _NOTHING else tuple(text.split(","))


def allowed(text: str) -> tuple[str, ...] | None:
    """Return a list with commas; None for ALL."""
    return None if text in _ALL else tuple(text.split(","))


QOS_FIELDS = "Name,MaxWall,GrpTRES,MaxTRES,MaxTRESPU"
ASSOCIATION_FIELDS = "Account,QOS"


def qos(text: str) -> tuple[Qos, ...]:
    """Return the QOS of ``sacctmgr -P show qos format=`` `QOS_FIELDS`, with or without its header."""
    found = []
    for row in _rows(text, QOS_FIELDS):
        limits = [_tres(row[key]) for key in ("GrpTRES", "MaxTRES", "MaxTRESPU")]
        gpus: dict[str, int] = {}
        for key, value in (item for limit in limits for item in limit.items()):
            kind = key.removeprefix("gres/gpu").removeprefix(":")
            if key.startswith("gres/gpu"):
                gpus[kind] = min(value, gpus.get(kind, value))
        nodes_of = [limit["node"] for limit in limits if "node" in limit]
        wall = seconds(row["MaxWall"])
        found.append(Qos(name=row["Name"], max_wall_seconds=wall, gpus=gpus, max_nodes=min(nodes_of, default=None)))
    return tuple(found)


def access(text: str, groups: Iterable[str] | None = None) -> Access:
    """Return what the user may use, of ``sacctmgr -P show assoc user=ME format=`` `ASSOCIATION_FIELDS`.

    An empty answer says nothing: many clusters keep no accounts.
    """
    rows = list(_rows(text, ASSOCIATION_FIELDS))
    accounts = sorted({row["Account"] for row in rows if row["Account"]})
    named = sorted({name for row in rows for name in words(row["QOS"])})
    return Access(
        accounts=tuple(accounts) or None,
        qos=tuple(named) or None,
        groups=tuple(groups) if groups is not None else None,
    )


def _rows(text: str, fields: str) -> Iterator[dict[str, str]]:
    names = fields.split(",")
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) >= len(names) and cells[0] != names[0]:
            yield dict(zip(names, cells, strict=False))


def _tres(text: str) -> dict[str, int]:
    """Return ``gres/gpu=16,node=2`` as a dict; what has a unit or is no count is left out."""
    pairs = (part.split("=", 1) for part in text.split(",") if "=" in part)
    return {key: int(value) for key, value in pairs if value.isdecimal() and len(value) <= MOST_DIGITS}
