"""What schedulers print, for the tests of inventories."""

from __future__ import annotations

from pathlib import Path

from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.reading import from_file, from_slurm
from fullft_cluster.inventory.slurm_text import access, qos

FIXTURES = Path(__file__).parent / "fixtures" / "inventory"
VERSIONS = ("20.11", "22.05", "24.11")


def raw(version: str, name: str) -> bytes:
    return (FIXTURES / f"slurm-{version}" / name).read_bytes()


def slurm(version: str = "22.05") -> Inventory:
    """The inventory of the text of one version, as a file of it would give."""
    return from_file(raw(version, "nodes.txt") + raw(version, "partitions.txt"), "cluster.txt")


def slurm_with_qos(groups: tuple[str, ...] | None = None) -> Inventory:
    """The same with accounts and QOS, as a cluster that keeps them gives."""
    text = (raw("22.05", "nodes.txt") + raw("22.05", "partitions.txt")).decode()
    told = access(raw("22.05", "associations.txt").decode(), groups)
    return from_slurm(text, version="22.05.8", qos=qos(raw("22.05", "qos.txt").decode()), access=told)
