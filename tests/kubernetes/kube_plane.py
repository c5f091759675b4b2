"""A real Kubernetes control plane on loopback for tests: etcd and kube-apiserver, with role-based access control."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
# In the foreground, and dead when pytest is: nothing is left behind even by a kill -9.
CHILD = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
# Their tokens are `NAME-token`. The reader may list nodes and nothing else, the outsider nothing at all.
USERS = {"admin": "system:masters", "reader": "readers", "outsider": "outsiders"}
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "reader"},
    "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}],
}
BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "reader"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "readers"}],
}


class ControlPlane:
    """The running control plane. `kubeconfig(user)` is what a client of it needs."""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.directory = Path(tempfile.mkdtemp(prefix="kube"))
        self.etcd_port, self.peer_port, self.port = free_ports(3)
        self.children: list[subprocess.Popen[bytes]] = []

    # --- its life
    def up(self) -> None:
        """Start it; returns when the API server is ready and the reader has its permission."""
        key = self.directory / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        lines = [f"{name}-token,{name},{number},{group}\n" for number, (name, group) in enumerate(USERS.items())]
        (self.directory / "tokens.csv").write_text("".join(lines))
        client, peer = (f"http://{HOST}:{port}" for port in (self.etcd_port, self.peer_port))
        addresses = (f"--listen-client-urls={client}", f"--advertise-client-urls={client}")
        peers = (
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self._start("etcd", "--data-dir=etcd", *addresses, *peers, "--unsafe-no-fsync", "--log-level=warn")
        self._start(
            "kube-apiserver",
            f"--etcd-servers={client}",
            f"--bind-address={HOST}",
            f"--advertise-address={HOST}",
            f"--secure-port={self.port}",
            "--cert-dir=certificates",  # it makes a certificate for its address there
            "--endpoint-reconciler-type=none",  # it would refuse a loopback address for itself
            "--service-cluster-ip-range=127.96.0.0/24",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            # no controller makes accounts, and none would take away the taint "not ready" that new nodes get
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--enable-priority-and-fairness=false",  # one client, thousands of requests
            f"--service-account-issuer=https://{HOST}:{self.port}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
        )
        self._wait_until_ready()
        group = "/apis/rbac.authorization.k8s.io/v1"
        self.post(f"{group}/clusterroles", [ROLE])
        self.post(f"{group}/clusterrolebindings", [BINDING])

    def down(self) -> None:
        """Stop it and delete its files."""
        for child in reversed(self.children):
            child.kill()  # nothing of its state is wanted
            child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*CHILD, str(self.assets / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        self.children.append(child)

    def _wait_until_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self._ready():
            ended = [child.args for child in self.children if child.poll() is not None]
            if ended or time.monotonic() > end:
                logs = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in self.directory.glob("*.log")]
                raise RuntimeError("\n".join([f"the control plane is not ready; ended: {ended}", *logs]))
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == http.client.OK
        except OSError:  # no certificate yet, nobody listens yet
            return False

    # --- talking to it
    def connect(self) -> http.client.HTTPSConnection:
        """Return a connection that trusts the API server's own certificate."""
        context = ssl.create_default_context(cafile=str(self.directory / "certificates" / "apiserver.crt"))
        return http.client.HTTPSConnection(HOST, self.port, timeout=60, context=context)

    def request(self, method: str, path: str, *, user: str = "admin", body: Any = None) -> tuple[int, bytes]:
        """Send one request as that user; return the status and the body."""
        connection = self.connect()
        try:
            return _ask(connection, method, path, user, body)
        finally:
            connection.close()

    def post(self, path: str, objects: Sequence[dict[str, Any]], connections: int = 2) -> None:
        """Create the objects, over several connections at a time; RuntimeError at the first that is refused."""
        parts = [objects[start::connections] for start in range(connections)]
        with concurrent.futures.ThreadPoolExecutor(connections) as pool:
            for _ in pool.map(self._post_all, itertools.repeat(path), parts):
                pass

    def _post_all(self, path: str, objects: Iterable[dict[str, Any]]) -> None:
        connection = self.connect()
        for value in objects:
            status, answer = _ask(connection, "POST", path, "admin", value)
            if status != http.client.CREATED:
                raise RuntimeError(f"POST {path}: {status} {answer.decode()}")
        connection.close()

    def kubeconfig(self, user: str) -> Path:
        """Write the kubeconfig of one of USERS and return its path."""
        certificate = (self.directory / "certificates" / "apiserver.crt").read_bytes()
        cluster = {
            "server": f"https://{HOST}:{self.port}",
            "certificate-authority-data": base64.b64encode(certificate).decode(),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": f"{user}-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        }
        path = self.directory / f"{user}.kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path


def _ask(connection: http.client.HTTPSConnection, method: str, path: str, user: str, body: Any) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {user}-token", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now (all held until the last is found, so they differ)."""
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
