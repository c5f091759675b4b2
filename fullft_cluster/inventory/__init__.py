"""What a cluster has: pools of equal nodes, partitions, QOS. Pure: from the text that a scheduler prints to nouns.

`nouns` are the types, `slurm_text`, `slurm_json` and `kube_json` read what schedulers print, `pooling` makes pools of
nodes, `gpu_names` finds a scheduler's GPU in our table, `reading` makes an inventory of all that, `sites` lays a
cluster profile on it. Asking a scheduler is the backends' part.
"""

from __future__ import annotations

from fullft_cluster.inventory.nouns import Access, Inventory, Partition, Pool, Qos
from fullft_cluster.inventory.sites import Site, sites

__all__ = ["Access", "Inventory", "Partition", "Pool", "Qos", "Site", "sites"]
