"""The operators of training jobs on a control plane of the tests: unmodified, with their webhooks, on loopback."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kube_assets
from kube_client import APPLY, Client
from kube_plane import HOST, ControlPlane, free_ports

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
HOOKS = "/apis/admissionregistration.k8s.io/v1"
FRAMEWORKS = ["batch/job", "jobset.x-k8s.io/jobset", "trainer.kubeflow.org/trainjob", "kubeflow.org/pytorchjob"]


def start(plane: ControlPlane, names: Sequence[str]) -> None:
    """Start these (keys of kube_assets.OPERATORS) at the same time; returns when all answer, webhooks included."""
    client, certificates = plane.client(), certificate(plane.directory)
    establish(plane, client, names)
    health = {}
    ports = {}
    for name in names:
        ports[name], health[name] = free_ports(2)
        _start(plane, name, ports[name], health[name])
    for name in names:
        plane.wait_until_ready(name, lambda name=name: _answers(f"http://{HOST}:{health[name]}/readyz"))  # type: ignore[misc]
    authority = base64.b64encode((certificates / "tls.crt").read_bytes()).decode()
    for name in names:
        _hook(client, name, ports[name], authority)


def establish(plane: ControlPlane, client: Client, names: Sequence[str]) -> None:
    """Apply the CRDs of these operators, and wait until the API server serves them."""
    wanted = set()
    for document in (document for name in names for document in kube_assets.crds(name)):
        found = re.search(rb"^  name: (\S+)$", document, re.MULTILINE)
        assert found is not None, document[:200]
        wanted.add(found[1].decode())
        client.json("PATCH", f"{CRDS}/{found[1].decode()}?fieldManager=tests&force=true", document, APPLY)

    def served() -> bool:
        held = {crd["metadata"]["name"]: crd for crd in client.get(CRDS)["items"]}
        return all(_established(held[name]) for name in wanted)

    plane.wait_until_ready("CRDs", served)


def _established(crd: dict[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions") or []  # none yet just after it was applied
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def certificate(directory: Path) -> Path:
    """Make one certificate for all webhooks, self-signed for loopback; return its directory (tls.crt, tls.key)."""
    certificates = directory / "webhook-certificates"
    if not certificates.exists():
        certificates.mkdir()
        names = ["-subj", "/CN=webhooks", "-addext", f"subjectAltName=IP:{HOST}"]
        files = ["-keyout", str(certificates / "tls.key"), "-out", str(certificates / "tls.crt")]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", *names, *files]
        subprocess.run(command, check=True, capture_output=True)
    return certificates


def _start(plane: ControlPlane, name: str, hook: int, health: int) -> None:
    certificates = plane.directory / "webhook-certificates"
    binary, kubeconfig = kube_assets.OPERATORS[name].binary, f"--kubeconfig={plane.kubeconfig('admin')}"
    if name == "training-operator":
        ports = (f"--webhook-server-port={hook}", f"--health-probe-bind-address={HOST}:{health}")
        plane.start(binary, kubeconfig, f"--cert-dir={certificates}", *ports, "--zap-log-level=info")
        return
    config: dict[str, Any] = {
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"{HOST}:{health}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "webhook": {"host": HOST, "port": hook},
    }
    wrapper: tuple[str, ...] = ()
    env = {}
    if name == "trainer":  # the directory of its certificate is fixed, below TMPDIR
        temporary = plane.directory / "trainer"
        shutil.copytree(certificates, temporary / "k8s-webhook-server" / "serving-certs")
        env["TMPDIR"] = str(temporary)
        config |= {"apiVersion": "config.trainer.kubeflow.org/v1alpha1", "certManagement": {"enable": False}}
    else:
        config["webhook"]["certDir"] = str(certificates)
        config["internalCertManagement"] = {"enable": False}
    if name == "jobset":
        config["apiVersion"] = "config.jobset.x-k8s.io/v1alpha1"
    if name == "kueue":
        config |= {"apiVersion": "config.kueue.x-k8s.io/v1beta2", "integrations": {"frameworks": FRAMEWORKS}}
        config["featureGates"] = {"VisibilityOnDemand": False}
        # It wants a certificate at a fixed path even with metrics off: there is an /etc of its own for it.
        make = 'mount -t tmpfs tmpfs /etc && mkdir -p /etc/kueue/metrics && cp -r "$0" /etc/kueue/metrics/certs'
        wrapper = ("unshare", "--mount", "sh", "-c", f'{make} && exec "$@"', str(certificates))
    path = plane.directory / f"{name}.json"
    path.write_text(json.dumps(config))
    plane.start(binary, kubeconfig, f"--config={path}", wrapper=wrapper, env=env)


def _hook(client: Client, name: str, port: int, authority: str) -> None:
    text = kube_assets.webhooks(name)
    assert text is not None
    for item in json.loads(text.replace("@PORT@", str(port)).replace("@CA@", authority))["items"]:
        plural = f"{item['kind'].lower()}s"
        path = f"{HOOKS}/{plural}/{item['metadata']['name']}?fieldManager=tests&force=true"
        client.json("PATCH", path, item, APPLY)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == http.client.OK)
    except (urllib.error.URLError, OSError):
        return False
