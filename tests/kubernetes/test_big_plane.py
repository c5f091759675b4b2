"""The control plane is one: what the other tests in this folder take for granted about it."""

from __future__ import annotations

import json

import pytest
from kube_nodes import TYPES
from kube_plane import ControlPlane

pytestmark = pytest.mark.kubernetes


def test_the_nodes_are_there_with_their_status(big_plane: ControlPlane) -> None:
    status, body = big_plane.request("GET", "/api/v1/nodes", user="reader")
    assert status == 200
    items = json.loads(body)["items"]
    for kind in TYPES:
        pool = [item for item in items if item["metadata"]["name"].startswith(f"{kind.prefix}-")]
        assert len(pool) == round(kind.share * len(items))
        assert {item["status"]["allocatable"].get("nvidia.com/gpu", "0") for item in pool} == {str(kind.gpus)}
    assert len(items) == 10_000


@pytest.mark.parametrize(("user", "path"), [("outsider", "/api/v1/nodes"), ("reader", "/api/v1/pods")])
def test_permissions_are_real(big_plane: ControlPlane, user: str, path: str) -> None:
    status, body = big_plane.request("GET", path, user=user)
    assert status == 403
    assert f'User "{user}" cannot list resource' in json.loads(body)["message"]
