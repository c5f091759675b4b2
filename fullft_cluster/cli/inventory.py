"""The command that shows what a cluster has."""

from __future__ import annotations

import click

from fullft_cluster.backends.inventory import read_inventory
from fullft_cluster.cli.options import json_option
from fullft_cluster.inventory import Inventory, Partition, Pool
from fullft_cluster.units import duration


@click.command()
@click.argument("source", default="slurm")
@json_option
def inventory(source: str, as_json: bool) -> None:
    """Show what GPUs, nodes and partitions a cluster has.

    SOURCE is `slurm` (default), `kubernetes`, `kubernetes:CONTEXT`, or a file: one that `--json` made, or the output of
    `scontrol show node -o` and `scontrol show partition -o`, or of `kubectl get nodes -o json`. `--json` prints what
    `plan --inventory FILE` takes.
    """
    found = read_inventory(source)
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    _print(found)


def _print(found: Inventory) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    pools = Table(box=None, pad_edge=False)
    for name, right in (
        ("nodes", True),
        ("up", True),
        ("idle", True),
        ("GPUs", False),
        ("is", False),
        ("CPUs", True),
        ("GiB", True),
        ("partitions" if found.source == "slurm" else "taints", False),
        ("which", False),
    ):
        pools.add_column(name, justify="right" if right else "left", overflow="fold")
    for pool in found.pools:
        pools.add_row(*(Text(cell) for cell in _pool(pool, found.source)))
    console.print(Text(f"{found.source} {found.version}".rstrip()))
    console.print(pools)
    if found.partitions:
        table = Table(box=None, pad_edge=False)
        for name in ("partition", "time limit", "nodes", "nodes a job", "QOS", "state", "for"):
            table.add_column(name, overflow="fold")
        for partition in found.partitions:
            table.add_row(*(Text(cell) for cell in _partition(partition)))
        console.print()
        console.print(table)
    notes = dict.fromkeys(pool.note for pool in found.pools if pool.gpus_per_node and pool.gpu is None)
    for note in notes:
        console.print(Text(f"{note}."))


def _pool(pool: Pool, source: str) -> tuple[str, ...]:
    gpus = f"{pool.gpus_per_node} x {pool.gpu_type or 'no type'}" if pool.gpus_per_node else "-"
    plain = [name for name in pool.candidates if not name.startswith(tuple(f"{other}-" for other in pool.candidates))]
    return (
        str(pool.nodes),
        str(pool.nodes_up),
        "?" if pool.nodes_idle is None else str(pool.nodes_idle),
        gpus,
        pool.gpu or " or ".join(plain) or "-",
        str(pool.cpus_per_node),
        f"{pool.host_memory_gib:.0f}",
        ", ".join(pool.partitions if source == "slurm" else pool.taints),
        pool.names,
    )


def _partition(partition: Partition) -> tuple[str, ...]:
    limit = partition.time_limit_seconds
    whom = [
        *(["root"] if partition.root_only else []),
        *(f"account {name}" for name in partition.allow_accounts or ()),
        *(f"QOS {name}" for name in partition.allow_qos or ()),
        *(f"group {name}" for name in partition.allow_groups or ()),
        *(f"not account {name}" for name in partition.deny_accounts),
        *(f"not QOS {name}" for name in partition.deny_qos),
    ]
    return (
        f"{partition.name}{'*' if partition.default else ''}",
        "none" if limit is None else duration(limit),
        str(partition.nodes),
        "any" if partition.max_nodes is None else str(partition.max_nodes),
        partition.qos or "-",
        "up" if partition.up else "closed",
        ", ".join(whom) or "all",
    )
