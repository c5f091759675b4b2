"""An inventory from a real API server with 10,000 nodes, and what one hears that may not have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kube_nodes import TYPES, UNSUITABLE
from kube_plane import ControlPlane

from fullft_cluster.backends.inventory import read_inventory
from fullft_cluster.config import Config
from fullft_cluster.errors import SchedulerError, UsageError
from fullft_cluster.hardware import load_cluster
from fullft_cluster.inventory import sites

pytestmark = pytest.mark.kubernetes
pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

GPUS = {"a100": "a100-80gb", "h100": "h100-80gb", "l40s": "l40s-48gb", "cpu": None}


def test_ten_thousand_nodes_are_four_pools(big_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(big_plane.kubeconfig("reader")))
    found = read_inventory("kubernetes")
    assert found.version.count(".") == 2
    pools = {pool.names.partition("-")[0]: pool for pool in found.pools}
    assert len(pools) == len(found.pools) == len(TYPES)
    for kind in TYPES:
        pool = pools[kind.prefix]
        assert (pool.gpu, pool.gpus_per_node) == (GPUS[kind.prefix], kind.gpus)
        assert (pool.nodes, pool.nodes_up) == (10_000 * kind.share, 10_000 * kind.share - 2 * UNSUITABLE)
        assert pool.nodes_idle is None
        assert kind.cpus - 1 <= pool.cpus_per_node < kind.cpus  # less what the kubelet keeps
        assert kind.memory - 10 < pool.host_memory_gib < kind.memory
        assert pool.taints == (("nvidia.com/gpu:NoSchedule",) if kind.gpus else ())
    assert len(found.to_json()) < 20_000


def test_a_profile_is_laid_on_them(big_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(big_plane.kubeconfig("reader")))
    first, *others = sites(read_inventory("kubernetes:test"), load_cluster("a100-80gb"), Config())
    assert (first.cluster.gpu, first.cluster.max_nodes) == ("a100-80gb", 5000 - 2 * UNSUITABLE)
    assert (first.partition, first.cluster.slurm_gpu_type) == (None, None)
    assert "pods there have to tolerate nvidia.com/gpu:NoSchedule" in first.notes
    assert [site.cluster.gpu for site in others] == ["h100-80gb", "l40s-48gb"]


def test_without_permission_the_command_that_grants_it(
    big_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(big_plane.kubeconfig("outsider")))
    with pytest.raises(SchedulerError) as caught:
        read_inventory("kubernetes")
    (problem,) = caught.value.problems
    assert problem.what == "you may not list nodes (you are outsider)"
    assert "kubectl create clusterrole fullft-cluster --verb=list --resource=nodes" in problem.fix
    assert "--clusterrole=fullft-cluster --user=outsider" in problem.fix
    assert "kubectl get nodes -o json" in problem.fix


def test_with_a_token_that_is_none(big_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = json.loads(big_plane.kubeconfig("reader").read_text())
    config["users"][0]["user"]["token"] = "stale"
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(SchedulerError, match="does not know you: Unauthorized"):
        read_inventory("kubernetes")


def test_a_context_that_is_none(big_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(big_plane.kubeconfig("reader")))
    with pytest.raises(UsageError, match=r"no context 'tests' in the kubeconfig. Did you mean 'test'\?"):
        read_inventory("kubernetes:tests")
