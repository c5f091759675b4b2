"""A Kubernetes cluster for tests: a control plane with its controllers, operators of training jobs, nodes and pods.

    def test_something(lab: Lab, namespace: str) -> None:
        lab.apply(manifests, user="user", namespace=namespace)
        lab.wait_for(lambda: lab.pod(namespace, "x")["status"]["phase"] == "Running")

Nothing of it is seen outside of this machine's loopback, and it ends with pytest.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import kube_assets
import kube_operators
import kube_queue
from kube_client import MERGE, ApiError, Object
from kube_faults import Faults
from kube_plane import CHILD, HOST, ControlPlane, free_ports

RBAC = "/apis/rbac.authorization.k8s.io/v1"
# What the user may in a namespace of a test, besides the role "admin", which knows no operator.
TRAINER = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "trains"},
    "rules": [
        {"apiGroups": [group], "resources": ["*"], "verbs": ["*"]}
        for group in ("kubeflow.org", "jobset.x-k8s.io", "trainer.kubeflow.org")
    ]
    + [{"apiGroups": ["kueue.x-k8s.io"], "resources": ["localqueues", "workloads"], "verbs": ["get", "list", "watch"]}],
}
STORAGE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "shared", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "tests.fullft-cluster/directories",
    "reclaimPolicy": "Delete",
}
API_FLAGS = ("--service-cluster-ip-range=10.96.0.0/24", "--kubelet-preferred-address-types=InternalIP")
GPUS = 2  # of a node: what a test can run
NODES = {"gpu-0": GPUS, "gpu-1": GPUS, "gpu-2": GPUS, "gpu-3": GPUS, "cpu-0": 0}
# Before what the pods do: a heartbeat that is late for want of a CPU would be a fault that no test asked for.
FIRST = ("nice", "-n", "-10")
T = TypeVar("T")


def missing(operators: Sequence[str] = ()) -> str | None:
    """Return why no such cluster can be started here, or None."""
    tools = [name for name in ("unshare", "nsenter", "setpriv", "ip", "mount") if shutil.which(name) is None]
    if tools or os.geteuid() != 0:
        return f"pods as processes need root, util-linux and iproute2 (missing: {', '.join(tools) or 'root'})"
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        return "pods as processes need namespaces, which this machine does not allow"
    assets = kube_assets.find(kube_assets.CLUSTER, tuple(operators))
    return assets if isinstance(assets, str) else None


class Lab(Faults):
    """The running cluster. `directory` has its logs (*.log), and those of the pods below `kubelet/pods`."""

    def __init__(self, operators: Sequence[str] = ()) -> None:
        assets = kube_assets.find(kube_assets.CLUSTER, tuple(operators))
        assert not isinstance(assets, str), assets
        self.plane = ControlPlane(assets, API_FLAGS, first=FIRST)
        self.directory, self.wanted = self.plane.directory, tuple(operators)
        self.failed = False  # a test: then the logs are kept
        self._numbers = itertools.count(1)
        self._kubelet: subprocess.Popen[str] | None = None
        self._commands = threading.Lock()

    # --- its life
    def up(self) -> None:
        """Start it; returns when its nodes are ready and its operators answer."""
        self.plane.up()
        self.client = self.plane.client()
        self.client.json("POST", f"{RBAC}/clusterroles", TRAINER)
        self.client.json("POST", "/apis/storage.k8s.io/v1/storageclasses", STORAGE)
        # First: the garbage collector hears of kinds that come later only after 30 s.
        kube_operators.establish(self.plane, self.client, self.wanted)
        self._controllers()
        self._nodes()
        if self.wanted:
            self.operators(*self.wanted)
        self.wait_for(self._all_nodes_can_be_used)

    def down(self) -> None:
        """End it. Its directory stays if a test has failed."""
        if self._kubelet is not None:
            self._kubelet.kill()
            self._kubelet.wait()
        self.plane.down(keep=self.failed)

    def operators(self, *names: str) -> None:
        """Start these operators, keys of kube_assets.OPERATORS, with their webhooks; returns when they answer."""
        assets = kube_assets.find((), names)
        assert not isinstance(assets, str), assets
        self.plane.assets = {**self.plane.assets, **assets}
        kube_operators.start(self.plane, names)

    def _controllers(self) -> None:
        kubeconfig, (first, second) = f"--kubeconfig={self.plane.kubeconfig('admin')}", free_ports(2)
        common = (kubeconfig, f"--bind-address={HOST}", "--leader-elect=false")
        self.plane.start(
            "kube-controller-manager",
            *common,
            f"--secure-port={first}",
            "--cert-dir=controller-manager",
            f"--service-account-private-key-file={self.directory}/accounts.key",
            f"--root-ca-file={self.directory}/certificates/apiserver.crt",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=6s",  # a real one: 50 s
            "--node-eviction-rate=10",  # a second; a real one: 0.1
            "--pvclaimbinder-sync-period=1s",  # a real one: 15 s
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )
        self.plane.start("kube-scheduler", *common, f"--secure-port={second}", "--cert-dir=scheduler")

    def _nodes(self) -> None:
        state = self.directory / "kubelet"
        state.mkdir()
        certificates = kube_operators.certificate(self.directory)  # nobody checks a kubelet's
        program, kubeconfig = Path(__file__).with_name("process_kubelet.py"), self.plane.kubeconfig("admin")
        with (self.directory / "kubelet.log").open("w") as log:
            self._kubelet = subprocess.Popen(
                [*CHILD, *FIRST, "unshare", "--mount", sys.executable, program, kubeconfig, state, certificates],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        for name, gpus in NODES.items():
            self.add_node(name, gpus)

    def _all_nodes_can_be_used(self) -> bool:
        nodes = self.client.get("/api/v1/nodes")["items"]
        return len(nodes) >= len(NODES) and not any(node["spec"].get("taints") for node in nodes)

    def add_node(self, name: str, gpus: int = GPUS, labels: dict[str, str] | None = None) -> None:
        """Add a node with so many A100, or with other labels."""
        self.ask("add", name=name, gpus=gpus, labels=labels or {})

    def ask(self, do: str, **command: Any) -> None:
        """Have the kubelet do something; returns when it is done. RuntimeError if it cannot."""
        assert self._kubelet is not None and self._kubelet.stdin is not None and self._kubelet.stdout is not None
        with self._commands:
            print(json.dumps({"do": do, **command}), file=self._kubelet.stdin, flush=True)
            line = self._kubelet.stdout.readline()
        if not line:
            raise RuntimeError(f"the kubelet has ended: {(self.directory / 'kubelet.log').read_text()[-3000:]}")
        if not (answer := json.loads(line))["ok"]:
            raise RuntimeError(answer["error"])

    # --- its users
    def kubeconfig(self, user: str = "user", namespace: str = "default") -> Path:
        """Return the kubeconfig of one of kube_plane.USERS."""
        return self.plane.kubeconfig(user, namespace)

    def kubectl(
        self, *arguments: str, user: str = "admin", namespace: str = "default", input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as that user; its answer is returned whatever it is."""
        command = [str(self.plane.assets["kubectl"]), f"--kubeconfig={self.kubeconfig(user, namespace)}", *arguments]
        env = {**os.environ, "KUBECACHEDIR": str(self.directory / "kubectl-cache")}
        return subprocess.run(command, input=input, text=True, capture_output=True, check=False, env=env)

    def apply(self, text: str, *, user: str = "admin", namespace: str = "default") -> None:
        """Apply manifests; AssertionError with what kubectl says if it refuses."""
        done = self.kubectl("apply", "--server-side", "-f", "-", user=user, namespace=namespace, input=text)
        assert done.returncode == 0, done.stderr

    def get(self, path: str) -> Object:
        """Return an object or a list, as the administrator; ApiError if it is not there."""
        return self.client.get(path)

    def pod(self, namespace: str, name: str) -> Object:
        """Return a pod; ApiError if it is not there."""
        return self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def pods(self, namespace: str, selector: str = "") -> list[Object]:
        """Return the pods with these labels (a=b,c=d), by name."""
        query = f"?labelSelector={selector.replace('=', '%3D').replace(',', '%2C')}" if selector else ""
        found: list[Object] = self.get(f"/api/v1/namespaces/{namespace}/pods{query}")["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def claim(self, namespace: str, name: str) -> Path:
        """Return the directory that is a bound claim's volume."""
        claim = self.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        volume = self.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        return Path(volume["spec"]["hostPath"]["path"])

    def nfs(self, server: str, path: str) -> Path:
        """Return the directory that stands for an NFS export."""
        exported = self.directory / "kubelet" / "nfs" / server / path.strip("/")
        exported.mkdir(parents=True, exist_ok=True)
        exported.chmod(0o777)
        return exported

    # --- namespaces
    @contextlib.contextmanager
    def namespace(self, *, queue_gpus: int | None = None) -> Iterator[str]:
        """A fresh namespace that the user may use, with a Kueue queue if asked; at its end nothing runs in it."""
        name = f"test-{next(self._numbers)}"
        self.client.json("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        for role in ("admin", "trains"):
            self.client.json("POST", f"{RBAC}/namespaces/{name}/rolebindings", _binding(role))
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.wait_for(lambda: self.client.find(account))
        self.wait_for(lambda: self.client.find(f"/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt"))
        if queue_gpus is not None:
            self.kueue_queue(name, gpus=queue_gpus)
        try:
            yield name
        finally:
            self.mend()
            self.ask("purge", namespace=name)
            self.client.request("DELETE", f"/api/v1/namespaces/{name}")
            # Its objects go 5 s later: https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/controller/namespace
            if "kueue" in self.wanted:
                kube_queue.remove(self.client, name)
            self.wait_for(self._all_nodes_can_be_used)

    def kueue_queue(self, namespace: str, *, gpus: int) -> str:
        """Make a LocalQueue for so many GPUs, and the priorities "low" and "high"; return its name."""
        return kube_queue.make(self.client, namespace, gpus)

    # --- waiting
    def wait_for(self, condition: Callable[[], T], seconds: float = 60) -> T:
        """Ask again until the condition holds, and return its value; AssertionError with the last one if it does not.

        An object or a key of it that is not there (yet) is a condition that does not hold.
        """
        end = time.monotonic() + seconds
        while True:
            last: object
            try:
                if value := condition():
                    return value
                last = value
            except (ApiError, OSError, LookupError) as error:
                last = error
            if time.monotonic() > end:
                raise AssertionError(f"not so after {seconds:.0f} s; last: {last!r}; logs: {self.directory}")
            time.sleep(0.1)

    def patch(self, path: str, change: Object) -> Object:
        """Change an object by a merge patch."""
        return self.client.json("PATCH", path, change, MERGE)


def _binding(role: str) -> Object:
    return {
        "metadata": {"name": f"user-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "user"}],
    }
