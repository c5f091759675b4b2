"""A Kubernetes control plane as a fixture: one session, one start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import kube_assets
import kube_nodes
import pytest
from kube_plane import ControlPlane

NODES = 10_000


@pytest.fixture(scope="session")
def big_plane() -> Iterator[ControlPlane]:
    """A control plane that knows 10,000 nodes, to be looked at only (20 s, most of it to create the nodes).

    Where it must not be missing (FULLFT_CLUSTER_REQUIRE_KUBERNETES=1), the absence of its binaries is an error.
    """
    assets = kube_assets.find()
    if isinstance(assets, str) and os.environ.get("FULLFT_CLUSTER_REQUIRE_KUBERNETES") == "1":
        pytest.fail(assets)
    if isinstance(assets, str):
        pytest.skip(assets)
    plane = ControlPlane(assets)
    try:
        plane.up()
        plane.post("/api/v1/nodes", list(kube_nodes.nodes(NODES)))
        yield plane
    finally:
        plane.down()
