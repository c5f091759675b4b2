"""A real Kubernetes control plane on loopback for tests: etcd and kube-apiserver, with role-based access control."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kube_client import Client

HOST = "127.0.0.1"
# In the foreground, and dead when pytest is: nothing is left behind even by a kill -9.
CHILD = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
# Their tokens are `NAME-token`. The reader may list nodes and nothing else, the outsider nothing at all.
# What the user may is said elsewhere, in single namespaces.
USERS = {"admin": "system:masters", "user": "users", "reader": "readers", "outsider": "outsiders"}
# For a plane that is only looked at: no controller makes accounts, and none would take away the taint "not ready"
# that new nodes get; and it has one client with thousands of requests.
ALONE = (
    "--service-cluster-ip-range=127.96.0.0/24",
    "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
    "--enable-priority-and-fairness=false",
)
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
    """The running control plane. `kubeconfig(user)` is what a client of it needs.

    `assets` are its binaries by name, `flags` what the API server is told besides the flags of all planes, `first`
    what each command begins with.
    """

    def __init__(self, assets: Mapping[str, Path], flags: Sequence[str] = ALONE, first: Sequence[str] = ()) -> None:
        self.assets, self.flags, self.first = assets, flags, first
        self.directory = Path(tempfile.mkdtemp(prefix="kube"))
        self.directory.chmod(0o755)  # what pods mount lies in it, and their users are others
        self.etcd_port, self.peer_port, self.port = free_ports(3)
        self.children: dict[str, subprocess.Popen[bytes]] = {}

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
        self.start("etcd", "--data-dir=etcd", *addresses, *peers, "--unsafe-no-fsync", "--log-level=warn")
        self.start_api()
        group = "/apis/rbac.authorization.k8s.io/v1"
        self.post(f"{group}/clusterroles", [ROLE])
        self.post(f"{group}/clusterrolebindings", [BINDING])

    def start_api(self) -> None:
        """Start the API server, also after stop_api: on the same port, with the same data; returns when it is ready."""
        key = self.directory / "accounts.key"
        self.start(
            "kube-apiserver",
            f"--etcd-servers=http://{HOST}:{self.etcd_port}",
            f"--bind-address={HOST}",
            f"--advertise-address={HOST}",
            f"--secure-port={self.port}",
            "--cert-dir=certificates",  # it makes a certificate for its address there
            "--endpoint-reconciler-type=none",  # it would refuse a loopback address for itself
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            f"--service-account-issuer=https://{HOST}:{self.port}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            *self.flags,
        )
        self.wait_until_ready("kube-apiserver", self._ready)

    def stop_api(self) -> None:
        """End the API server at once; what it has stored stays."""
        self.stop("kube-apiserver")

    def down(self, *, keep: bool = False) -> None:
        """Stop it; delete its files unless they are to be kept."""
        for name in reversed(list(self.children)):
            self.stop(name)  # nothing of its state is wanted
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def start(
        self, name: str, *arguments: str, wrapper: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """Start one of the binaries; its output goes to NAME.log."""
        # The kernel ties a child to the thread that made it: it would die with that thread, not with pytest.
        assert threading.current_thread() is threading.main_thread(), "children are started from the main thread"
        with (self.directory / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [*CHILD, *self.first, *wrapper, str(self.assets[name]), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **(env or {})},
            )

    def stop(self, name: str) -> None:
        """Kill one of the children and wait for its end."""
        child = self.children.pop(name)
        child.kill()
        child.wait()

    def wait_until_ready(self, what: str, ready: Callable[[], bool], seconds: float = 120) -> None:
        """Ask again until it is; RuntimeError with the ends of all logs if a child ends or the time is over."""
        end = time.monotonic() + seconds
        while not ready():
            ended = [name for name, child in self.children.items() if child.poll() is not None]
            if ended or time.monotonic() > end:
                logs = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in self.directory.glob("*.log")]
                raise RuntimeError("\n".join([f"{what} is not ready; ended: {ended}", *logs]))
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == http.client.OK
        except (OSError, http.client.HTTPException):  # no certificate yet, nobody listens yet
            return False

    # --- talking to it
    def client(self, user: str = "admin") -> Client:
        """Return a client of its own for one of USERS."""
        return Client(HOST, self.port, self.certificate().decode(), f"{user}-token")

    def certificate(self) -> bytes:
        """Return what clients verify the API server by, as PEM."""
        return (self.directory / "certificates" / "apiserver.crt").read_bytes()

    def request(self, method: str, path: str, *, user: str = "admin", body: Any = None) -> tuple[int, bytes]:
        """Send one request as that user; return the status and the body."""
        return self.client(user).request(method, path, body)

    def post(self, path: str, objects: Sequence[dict[str, Any]], connections: int = 2) -> None:
        """Create the objects, over several connections at a time; RuntimeError at the first that is refused."""
        parts = [objects[start::connections] for start in range(connections)]
        with concurrent.futures.ThreadPoolExecutor(connections) as pool:
            for _ in pool.map(self._post_all, itertools.repeat(path), parts):
                pass

    def _post_all(self, path: str, objects: Iterable[dict[str, Any]]) -> None:
        client = self.client()
        for value in objects:
            status, answer = client.request("POST", path, value)
            if status != http.client.CREATED:
                raise RuntimeError(f"POST {path}: {status} {answer.decode()}")

    def kubeconfig(self, user: str, namespace: str = "default") -> Path:
        """Write the kubeconfig of one of USERS and return its path."""
        cluster = {
            "server": f"https://{HOST}:{self.port}",
            "certificate-authority-data": base64.b64encode(self.certificate()).decode(),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": f"{user}-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
        }
        path = self.directory / f"{user}.{namespace}.kubeconfig"
        whole = self.directory / f".{user}.{namespace}.{threading.get_ident()}"
        whole.write_text(json.dumps(config))
        whole.chmod(0o600)
        whole.replace(path)  # whoever was given it before may be reading it now
        return path


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now (all held until the last is found, so they differ)."""
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
