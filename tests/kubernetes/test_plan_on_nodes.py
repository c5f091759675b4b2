"""`fullft-cluster plan --inventory kubernetes` against an API server that knows 10,000 nodes, as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kube_plane import ControlPlane

pytestmark = pytest.mark.kubernetes
pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

MAIN = "import sys; from fullft_cluster.cli.main import main; sys.exit(main())"
Plan = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def run(kubeconfig: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MAIN, "plan", "--model", "65b", "--max-steps", "100", *arguments]
        env = {**os.environ, "KUBECONFIG": str(kubeconfig), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_a_plan_is_laid_on_one_pool(big_plane: ControlPlane, plan: Plan) -> None:
    done = plan(big_plane.kubeconfig("reader"), "--inventory", "kubernetes:test", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    # 5,000 nodes of eight A100: the pool of the default profile's GPU, though others are there
    assert (made["gpu"], made["gpus_per_node"]) == ("a100-80gb", 8)


def test_who_may_not_list_nodes_is_told_so(big_plane: ControlPlane, plan: Plan) -> None:
    refused = plan(big_plane.kubeconfig("outsider"), "--inventory", "kubernetes")
    assert refused.returncode == 4
    assert refused.stdout == ""
    assert "you may not list nodes (you are outsider)" in refused.stderr
    assert "kubectl create clusterrole" in refused.stderr and "--resource=nodes" in refused.stderr


def test_who_is_not_known_is_told_so(big_plane: ControlPlane, plan: Plan) -> None:
    kubeconfig = big_plane.kubeconfig("reader")
    kubeconfig.write_text(kubeconfig.read_text().replace("reader-token", "wrong-token"))
    refused = plan(kubeconfig, "--inventory", "kubernetes")
    assert refused.returncode == 4
    assert "Unauthorized" in refused.stderr
    assert "wrong-token" not in refused.stderr


def test_a_server_that_is_not_there(big_plane: ControlPlane, plan: Plan) -> None:
    kubeconfig = big_plane.kubeconfig("reader")
    kubeconfig.write_text(kubeconfig.read_text().replace(f":{big_plane.port}", ":1"))
    refused = plan(kubeconfig, "--inventory", "kubernetes")
    assert refused.returncode == 4
    assert "127.0.0.1:1 does not answer" in refused.stderr
