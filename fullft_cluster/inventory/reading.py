"""An inventory from the bytes that schedulers print, or that somebody saved."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.inventory import json_text, kube_json, slurm_json, slurm_text
from fullft_cluster.inventory.nouns import Access, Inventory, Partition, Qos
from fullft_cluster.inventory.pooling import pools

ANYTHING = Access()
"""Where nothing is known of what the user may use."""
HOW = (
    "Make it by `fullft-cluster inventory --json > FILE` on the cluster, or by `(scontrol -a show node -o; scontrol -a "
    "show partition -o) > FILE`, or by `kubectl get nodes -o json > FILE`."
)


def from_slurm(
    text: str, *, version: str = "", qos: tuple[Qos, ...] = (), access: Access = ANYTHING, where: str = "scontrol"
) -> Inventory:
    """Return the inventory of the lines of ``scontrol show node -o`` and ``scontrol show partition -o``, in any order.

    Raises UsageError for lines that are neither.
    """
    made = pools(slurm_text.nodes(text, where))
    told = slurm_text.partitions(text)
    return Inventory(source="slurm", version=version, pools=made, partitions=told, qos=qos, access=access)


def from_kubernetes(pages: Iterable[kube_json.NodeList], version: str = "") -> Inventory:
    """Return the inventory of the pages of ``GET /api/v1/nodes``."""
    nodes = (node for page in pages for node in kube_json.nodes(page.items))
    return Inventory(source="kubernetes", version=version, pools=pools(nodes, idle_known=False))


def from_file(data: bytes, where: str) -> Inventory:
    """Return the inventory of a file: one of `Inventory.to_json`, or what a scheduler's own command printed.

    Raises UsageError for anything else.
    """
    text = data.decode(errors="replace").strip()
    if not text:
        raise UsageError(Problem(where, "is empty", HOW))
    if text[0] != "{":
        if not re.search(r"^\s*NodeName=\S", text, re.MULTILINE):
            raise UsageError(Problem(where, "is not an inventory", HOW))
        return from_slurm(text, where=where)
    try:
        kind = json_text.decode(data, _Kind)
    except msgspec.DecodeError as error:
        raise UsageError(Problem(where, f"is not an inventory: {error}", HOW)) from None
    if kind.pools is not msgspec.UNSET:
        return Inventory.from_json(data, where)
    if kind.items is not msgspec.UNSET:
        try:
            return from_kubernetes([kube_json.decode(data)])
        except msgspec.DecodeError as error:
            raise UsageError(Problem(where, f"is not a list of nodes: {error}", HOW)) from None
    if kind.nodes is msgspec.UNSET and kind.sinfo is msgspec.UNSET:
        raise UsageError(Problem(where, "is JSON, but of no kind that lists nodes", HOW))
    return _from_slurm_json(data, where)


class _Kind(msgspec.Struct):
    """The keys by which the kinds of files are told apart."""

    pools: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    items: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    nodes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    sinfo: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _from_slurm_json(data: bytes, where: str) -> Inventory:
    try:
        document = slurm_json.decode(data)
    except msgspec.DecodeError as error:
        what = f"is not what `scontrol show nodes --json` or `sinfo --json` prints: {error}"
        raise UsageError(Problem(where, what, HOW)) from None
    nodes = list(slurm_json.nodes(document))
    told: tuple[Partition, ...] = slurm_json.partitions(document)
    return Inventory(source="slurm", version=document.version, pools=pools(nodes), partitions=told)
