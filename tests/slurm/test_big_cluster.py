"""An inventory of 10,000 nodes, read from a real controller."""

from __future__ import annotations

import collections

import pytest
from slurm_big import NODES, BigLab

pytestmark = pytest.mark.slurm


def test_the_controller_shows_its_nodes_as_a_large_cluster_would(big_lab: BigLab) -> None:
    rows = [line.split() for line in big_lab.run("sinfo", "-h", "-o", "%R %D %t").splitlines()]
    for partition, count in NODES.items():
        assert sum(int(nodes) for name, nodes, _ in rows if name == partition) == count
    states = collections.Counter({state: int(nodes) for name, nodes, state in rows if name == "a100"})
    assert states == {"idle": 5770, "alloc": 200, "mix": 10, "drain": 10, "down": 10}
