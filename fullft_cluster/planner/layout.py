"""How many GPUs, on which nodes: the candidates, from the user's constraints and the cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fullft_cluster.config import ResourcesConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU, Cluster
from fullft_cluster.plan_words import count, noun


@dataclass(frozen=True)
class Layout:
    """Equal shares of GPUs on nodes."""

    nodes: int
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        """Return the GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    def on(self, gpu: str) -> str:
        """Return the layout in words: ``16 GPUs (2 nodes of 8)``, or processes where there is no GPU."""
        return f"{count(self.gpus, noun(gpu))} ({count(self.nodes, 'node')} of {self.gpus_per_node})"


def candidates(wanted: ResourcesConfig, cluster: Cluster) -> list[Layout]:
    """Return the layouts to try, the fewest GPUs first. Raises UsageError for constraints that exclude each other.

    Without constraints: 1, 2, 3, ... GPUs of a node, then whole nodes. On CPUs a process costs nothing, so it starts
    with all processes of a node.
    """
    problems = list(_contradictions(wanted, cluster))
    if problems:
        raise UsageError(problems)
    layouts = [x for x in _all(wanted, cluster) if wanted.max_gpus is None or x.gpus <= wanted.max_gpus]
    if not layouts and wanted.max_gpus is not None and cluster.gpu == CPU:
        layouts = [Layout(1, min(wanted.max_gpus, cluster.gpus_per_node))]
    if not layouts:
        per_node = wanted.gpus_per_node or cluster.gpus_per_node
        fix = f"Write {per_node * (wanted.nodes or 1)} or more."
        raise UsageError(Problem("resources.max_gpus", f"{wanted.max_gpus} is less than one node's GPUs", fix))
    return layouts


def _all(wanted: ResourcesConfig, cluster: Cluster) -> Iterator[Layout]:
    """Yield the layouts that nodes, gpus_per_node and gpus leave, the fewest GPUs first."""
    per_node = wanted.gpus_per_node or cluster.gpus_per_node
    if wanted.gpus:
        yield spread(wanted, cluster)
    elif wanted.nodes:
        yield Layout(wanted.nodes, per_node)
    else:
        if wanted.gpus_per_node is None and cluster.gpu != CPU:
            yield from (Layout(1, gpus) for gpus in range(1, per_node))
        yield from (Layout(nodes, per_node) for nodes in range(1, cluster.max_nodes + 1))


def spread(wanted: ResourcesConfig, cluster: Cluster) -> Layout:
    """Return the layout of exactly ``wanted.gpus`` on as few nodes as share them equally.

    The constraints hold (see `_contradictions`).
    """
    gpus = wanted.gpus or 1
    if wanted.nodes:
        return Layout(wanted.nodes, gpus // wanted.nodes)
    if wanted.gpus_per_node:
        return Layout(gpus // wanted.gpus_per_node, wanted.gpus_per_node)
    nodes = -(-gpus // cluster.gpus_per_node)
    while gpus % nodes:
        nodes += 1
    return Layout(nodes, gpus // nodes)


def _contradictions(wanted: ResourcesConfig, cluster: Cluster) -> Iterator[Problem]:
    """Yield each constraint that another one, or the cluster, excludes."""
    gpus, nodes, per_node = wanted.gpus, wanted.nodes, wanted.gpus_per_node
    most = cluster.max_nodes * cluster.gpus_per_node
    if per_node and per_node > cluster.gpus_per_node:
        what = f"{per_node} is more than the {cluster.gpus_per_node} of a node of {cluster.name}"
        yield Problem("resources.gpus_per_node", what, f"Write at most {cluster.gpus_per_node}.")
        return
    if nodes and nodes > cluster.max_nodes:
        what = f"{nodes} is more than the {cluster.max_nodes} of {cluster.name}"
        yield Problem(
            "resources.nodes", what, f"Write at most {cluster.max_nodes} (max_nodes of the profile, or what is up)."
        )
        return
    exact = gpus or (nodes or 0) * (per_node or (cluster.gpus_per_node if nodes else 0))
    if wanted.max_gpus and exact > wanted.max_gpus:
        fix = f"Write at most {wanted.max_gpus}, or raise resources.max_gpus."
        asked = "resources.gpus" if gpus else "resources.nodes"
        yield Problem(
            asked, f"asks for {count(exact, noun(cluster.gpu))}, but resources.max_gpus is {wanted.max_gpus}", fix
        )
    if gpus:
        yield from _of_exact_gpus(wanted, cluster, gpus, most)


def _of_exact_gpus(wanted: ResourcesConfig, cluster: Cluster, gpus: int, most: int) -> Iterator[Problem]:
    """Yield why exactly this many GPUs do not lie on the nodes."""
    where, nodes, per_node = "resources.gpus", wanted.nodes, wanted.gpus_per_node
    asked = count(gpus, noun(cluster.gpu))
    if nodes and per_node:
        if nodes * per_node != gpus:
            what = f"{gpus} is not {nodes} nodes x {count(per_node, noun(cluster.gpu))} per node"
            yield Problem(where, what, f"Write {nodes * per_node}, or leave one of the three out.")
        return
    if gpus > most:
        what = f"{gpus} is more than the {most} of {cluster.name} ({cluster.max_nodes} nodes)"
        yield Problem(where, what, f"Write at most {most} (max_nodes of the profile, or what is up).")
        return
    share, what_of = (nodes, "node") if nodes else (per_node, noun(cluster.gpu))
    if share and gpus % share:
        below, above = gpus // share * share, (gpus // share + 1) * share
        what = f"{asked} cannot be divided over {count(share, what_of)}{'' if nodes else ' per node'}"
        yield Problem(where, what, f"Write {below or above} or {above}." if below else f"Write {above}.")
        return
    layout = spread(wanted, cluster)
    if layout.gpus_per_node > cluster.gpus_per_node:
        what = f"{asked} on {count(layout.nodes, 'node')} are more than {cluster.gpus_per_node} a node"
        yield Problem(where, what, f"Write at most {layout.nodes * cluster.gpus_per_node}, or more nodes.")
    elif layout.nodes > cluster.max_nodes or (layout.nodes > 1 and not share and not _dense(layout, cluster)):
        size = cluster.gpus_per_node
        below, above = gpus // size * size, (gpus // size + 1) * size
        what = f"{asked} do not spread evenly over nodes of {size}"
        yield Problem(where, what, f"Write {below} or {above}, or give nodes and gpus_per_node too.")


def _dense(layout: Layout, cluster: Cluster) -> bool:
    """Return whether more than half of each node is used: 12 GPUs as 2 nodes of 6, but not 11 as 11 nodes of 1."""
    return 2 * layout.gpus_per_node > cluster.gpus_per_node
