"""Kubernetes nodes: what is read of them, and what a server that answers badly is told apart from."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from fullft_cluster.backends import kubernetes_inventory
from fullft_cluster.backends.inventory import read_inventory
from fullft_cluster.errors import SchedulerError, UsageError
from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.kube_json import quantity
from fullft_cluster.inventory.reading import from_file


def node(name: str = "n1", **changes: Any) -> dict[str, Any]:
    """A ready node of 8 A100, as the API server has it, with what we do not read."""
    product = changes.pop("product", "NVIDIA-A100-SXM4-80GB")
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": changes.pop("mib", "81920"), "x": "y"}
    return {
        "metadata": {"name": name, "uid": "u", "labels": labels | changes.pop("labels", {})},
        "spec": {"podCIDR": "10.0.0.0/24", **changes.pop("spec", {})},
        "status": {
            "allocatable": {"cpu": "95690m", "memory": "1129968Mi", "nvidia.com/gpu": "8"}
            | changes.pop("allocatable", {}),
            "conditions": [
                {"type": "MemoryPressure", "status": "False", "reason": "r"},
                {"type": "Ready", "status": changes.pop("ready", "True"), "reason": "r"},
            ],
            "images": [{"names": ["a"]}],
        },
    } | changes


def listed(*nodes: dict[str, Any], more: str = "") -> bytes:
    return json.dumps({"kind": "NodeList", "metadata": {"continue": more}, "items": list(nodes)}).encode()


def read(*nodes: dict[str, Any]) -> Inventory:
    return from_file(listed(*nodes), "nodes.json")


def test_equal_nodes_are_one_pool() -> None:
    (pool,) = read(node("n1"), node("n2", allocatable={"memory": "1129961Mi"}), node("n3")).pools
    assert (pool.gpu_type, pool.gpu, pool.gpus_per_node) == ("NVIDIA-A100-SXM4-80GB", "a100-80gb", 8)
    assert (pool.nodes, pool.nodes_up, pool.nodes_idle) == (3, 3, None)
    assert (pool.cpus_per_node, pool.names) == (95, "n[1-3]")
    assert pool.host_memory_gib == pytest.approx(1129961 / 1024, abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"ready": "False"},
        {"ready": "Unknown"},
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}},
        {"status": {"allocatable": {"nvidia.com/gpu": "8"}}},  # never reported in
    ],
)
def test_a_node_that_takes_no_pods_is_not_up(changes: dict[str, Any]) -> None:
    assert [(pool.nodes, pool.nodes_up) for pool in read(node(**changes)).pools] == [(1, 0)]


def test_taints_that_a_pod_has_to_tolerate_tell_pools_apart() -> None:
    taints = [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "team", "effect": "NoExecute"},
        {"key": "soft", "effect": "PreferNoSchedule"},
    ]
    tainted, plain = read(node("n1", spec={"taints": taints}), node("n2")).pools
    assert (tainted.taints, plain.taints) == (("nvidia.com/gpu=present:NoSchedule", "team:NoExecute"), ())


def test_the_labels_memory_says_which_gpu() -> None:
    (pool,) = read(node(product="NVIDIA-A100-SXM4", mib="40960")).pools
    assert pool.gpu == "a100-40gb"
    (pool,) = read(node(product="NVIDIA-L40S", mib="46068")).pools
    assert pool.gpu == "l40s-48gb"


def test_slices_and_shares_are_no_gpus_of_ours() -> None:
    (mig,) = read(node(product="NVIDIA-A100-SXM4-80GB-MIG-1g.10gb")).pools
    assert (mig.gpu, mig.candidates) == (None, ())
    (shared,) = read(node(product="NVIDIA-A100-SXM4-80GB-SHARED")).pools
    assert (shared.gpu, shared.candidates) == (None, ())


def test_nodes_without_gpus_and_without_labels() -> None:
    bare = {"metadata": {"name": "n1"}, "spec": {}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}}
    (pool,) = read(bare).pools
    assert (pool.gpus_per_node, pool.cpus_per_node, pool.host_memory_gib, pool.note) == (0, 4, 8, "no GPUs")
    (unlabelled,) = read(node(metadata={"name": "n1"})).pools
    assert (unlabelled.gpu_type, unlabelled.gpus_per_node, unlabelled.gpu) == (None, 8, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8),
        (8, 8),
        ("500m", 0.5),
        ("95690m", 95.69),
        ("1Ki", 1024),
        ("1.5Gi", 1.5 * 2**30),
        ("2M", 2e6),
        ("1e3", 1000),
        ("1E", 1e18),
        ("1e999", 0),
        ("1Ti", 2**40),
        (".5", 0.5),
        ("", 0),
        ("many", 0),
        ("1KiB", 0),
    ],
)
def test_quantities(text: str | int, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


# --- the calls


class Server(BaseHTTPRequestHandler):
    """An API server of a few lines: it gives the answers in turn and keeps what it was asked."""

    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked: ClassVar[list[dict[str, list[str]]]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        status, body = (200, b'{"gitVersion": "v1.31.4"}') if url.path == "/version" else self.answers.pop(0)
        if url.path != "/version":
            self.asked.append(parse_qs(url.query))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Server]]:
    pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")
    monkeypatch.setattr(kubernetes_inventory, "PATIENCE_SECONDS", 0.0)
    Server.answers, Server.asked = [], []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    kubeconfig(monkeypatch, tmp_path, f"http://127.0.0.1:{http.server_port}")
    yield Server
    http.shutdown()
    http.server_close()


def kubeconfig(monkeypatch: pytest.MonkeyPatch, directory: Path, address: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    (directory / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(directory / "kubeconfig"))


def status(code: int, message: str) -> tuple[int, bytes]:
    return code, json.dumps({"kind": "Status", "code": code, "message": message}).encode()


def test_page_after_page(server: type[Server]) -> None:
    server.answers = [(200, listed(node("n1"), more="2 of 3")), (200, listed(node("n2"), more="3/3")), (200, listed())]
    found = read_inventory("kubernetes")
    assert (found.source, found.version, found.pools[0].names) == ("kubernetes", "1.31.4", "n[1-2]")
    assert [question.get("continue") for question in server.asked] == [None, ["2 of 3"], ["3/3"]]
    # The first asks for any version, which a following page must not (the server refuses both together).
    assert [question.get("resourceVersion") for question in server.asked] == [["0"], None, None]
    assert {question["limit"][0] for question in server.asked} == {"1000"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(401, "Unauthorized"), "does not know you: Unauthorized. Log in anew"),
        (
            status(403, 'nodes is forbidden: User "system:serviceaccount:ml:runner" cannot list resource "nodes"'),
            "--clusterrole=fullft-cluster --serviceaccount=ml:runner",
        ),
        (status(403, "no"), "--clusterrole=fullft-cluster --user=NAME"),
        (status(500, "etcd is gone"), "answers 500: etcd is gone"),
        ((503, b"<html>proxy</html>"), "answers 503: Service Unavailable"),
        ((200, b"<html>login</html>"), "sent no list of nodes"),
        ((200, b"{}"), "sent no list of nodes"),
    ],
)
def test_what_a_server_refuses(server: type[Server], answer: tuple[int, bytes], words: str) -> None:
    server.answers = [answer]
    with pytest.raises(SchedulerError) as caught:
        read_inventory("kubernetes")
    assert words in str(caught.value)
    assert caught.value.exit_code == 4
    assert len(server.asked) == 1  # not asked again


def test_nobody_listens(server: type[Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kubeconfig(monkeypatch, tmp_path, "http://127.0.0.1:1")
    with pytest.raises(SchedulerError, match=r"http://127.0.0.1:1 does not answer: .*Connection refused"):
        read_inventory("kubernetes")


def test_no_cluster_is_configured(server: type[Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SchedulerError, match="no cluster is configured"):
        read_inventory("kubernetes")
    with pytest.raises(UsageError, match="no context 'there'"):
        read_inventory("kubernetes:there")


def test_a_context_that_is_not_there(server: type[Server]) -> None:
    with pytest.raises(UsageError, match=r"no context 'hare' in the kubeconfig. Did you mean 'here'\?"):
        read_inventory("kubernetes:hare")
