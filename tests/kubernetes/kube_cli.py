"""The command line against an API server, for what needs no training: nothing that it submits ever gets a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kube_client import Client, Object

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example.org/fullft-cluster:0.1.0"
MANAGED = "app.kubernetes.io%2Fmanaged-by%3Dfullft-cluster"
KINDS = (
    "/api/v1/{}configmaps",
    "/api/v1/{}services",
    "/api/v1/{}serviceaccounts",
    "/api/v1/{}persistentvolumeclaims",
    "/apis/batch/v1/{}jobs",
    "/apis/networking.k8s.io/v1/{}networkpolicies",
    "/apis/rbac.authorization.k8s.io/v1/{}roles",
    "/apis/rbac.authorization.k8s.io/v1/{}rolebindings",
    "/apis/kubeflow.org/v1/{}pytorchjobs",
    "/apis/jobset.x-k8s.io/v1alpha2/{}jobsets",
    "/apis/trainer.kubeflow.org/v1alpha1/{}trainjobs",
    "/apis/trainer.kubeflow.org/v1alpha1/{}trainingruntimes",
)


class Shell:
    """Runs `fullft-cluster` in a directory of its own, with one kubeconfig."""

    def __init__(self, directory: Path, kubeconfig: Path, **env: str) -> None:
        self.directory = directory
        (directory / "train.jsonl").write_text('{"text": "Two nodes are better than one."}\n' * 20)
        self.env = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT), "HOME": str(directory), **env}

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "fullft_cluster", *arguments],
            cwd=self.directory,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command; its exit code must be `code` (None: any), and no mistake is shown as a traceback."""
        child = self.start(*arguments, **env)
        out, err = child.communicate(timeout=300)
        assert code in (None, child.returncode), f"{arguments}: exit {child.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, child.returncode, out, err)

    def job(self, name: str = "run", kind: str = "pytorchjob", *settings: str) -> list[str]:
        """Return the options of a job whose pods ask for more than any node has."""
        own = ("kubernetes.host_path=/shared", "kubernetes.cpus=9000", "kubernetes.prepare_cpus=9000")
        sets = [part for one in (*own, *settings) for part in ("--set", one)]
        where = ["--data", str(self.directory / "train.jsonl"), "--runs-dir", "/shared/runs", "--name", name]
        model = ["--backend", "kubernetes", "--model", "tiny", "--cluster", "local", "--image", IMAGE, "--kind", kind]
        return [*model, *where, *sets]


def objects(client: Client, namespace: str) -> dict[str, Object]:
    """Return every object of ours in a namespace, by resource/name."""
    found = {}
    for path in KINDS:
        try:
            listed = client.get(f"{path.format(f'namespaces/{namespace}/')}?labelSelector={MANAGED}")["items"]
        except Exception as error:
            if getattr(error, "status", None) != 404:  # a CRD that is not there
                raise
            continue
        found.update({f"{path.rpartition('}')[2]}/{one['metadata']['name']}": one for one in listed})
    return found


def names(*, kind: str = "pytorchjobs", run: str = "run") -> set[str]:
    """Return what a submit makes."""
    maps = {f"configmaps/{run}-files", f"configmaps/{run}-state", f"networkpolicies/{run}", f"serviceaccounts/{run}"}
    maps |= {f"roles/{run}", f"rolebindings/{run}", f"jobs/{run}-prepare", f"jobs/{run}-supervisor", f"{kind}/{run}"}
    if kind == "jobs":
        maps.add(f"services/{run}")
    if kind == "trainjobs":
        maps.add(f"trainingruntimes/{run}")
    return maps


def make_run(client: Client, namespace: str, name: str, **state: Any) -> None:
    """Make the objects of a run by hand, with a config and a state, as a submit and a supervisor would; no pods."""
    labels = {"app.kubernetes.io/managed-by": "fullft-cluster", "app.kubernetes.io/instance": name}
    config = {"backend": "kubernetes", "name": name, "kubernetes": {"kind": "job", "namespace": namespace}}
    data = {"config.yaml": json.dumps(config | {"output": {"runs_dir": "/shared/runs"}})}
    for suffix, values in (("files", data), ("state", {key: json.dumps(value) for key, value in state.items()})):
        body = {"metadata": {"name": f"{name}-{suffix}", "labels": labels}, "data": values}
        client.json("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    container = {"name": "node", "image": "none", "command": ["true"]}
    pod = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"metadata": {"name": name, "labels": labels}, "spec": {"suspend": True, "template": pod}}
    client.json("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs", job)
