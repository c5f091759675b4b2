"""The manifests on a real API server with the real operators: what is taken, what ends, what a token may do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_client import MERGE, Client
from kube_lab import Lab

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from kubernetes_scenarios import KINDS, SCENARIOS, rendered
from manifest_schemas import CRDS

pytestmark = pytest.mark.kubernetes

PATHS = {
    "pytorchjob": "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs",
    "trainjob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
    "jobset": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{}/jobsets",
    "job": "/apis/batch/v1/namespaces/{}/jobs",
}
NOWHERE = {"kubernetes.node_selector": {"nowhere": "true"}}
"""No pod gets a node: it is the controllers that are looked at."""


def files(name: str, kind: str, namespace: str, **flags: Any) -> dict[str, str]:
    return rendered({**SCENARIOS[name], "kubernetes.namespace": namespace, **NOWHERE, **flags}, kind)[0].files


@pytest.fixture(scope="module")
def pod_groups(lab: Lab) -> Iterator[None]:
    """The gang schedulers' kinds, from the schemas of the unit tests; other tests need a cluster without them."""
    made = []
    for path in sorted(CRDS.glob("podgroups-*.json")):
        crd = json.loads(path.read_text())
        group, _, version = crd["apiVersion"].partition("/")
        names = {"kind": "PodGroup", "listKind": "PodGroupList", "plural": "podgroups", "singular": "podgroup"}
        served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": crd["schema"]}}
        approved = {"api-approved.kubernetes.io": "unapproved, for tests"}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"podgroups.{group}", "annotations": approved},
            "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": [served]},
        }
        made.append(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/podgroups.{group}")
        lab.apply(json.dumps(definition))
        lab.wait_for(lambda at=crd["apiVersion"]: lab.get(f"/apis/{at}/namespaces/default/podgroups") is not None)
    yield
    for path in made:
        lab.client.json("DELETE", path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("pod_groups")
def test_the_server_and_its_webhooks_take_every_scenario_as_it_is(lab: Lab, namespace: str, kind: str) -> None:
    """Under strict validation. A TrainJob is taken only beside its runtime, so that is made first."""
    texts = [files(name, kind, namespace) for name in SCENARIOS]
    if kind == "trainjob":
        runtime = re.split(r"^---\n", texts[0]["job.yaml"], flags=re.M)[0]
        made = lab.kubectl("apply", "-f", "-", input=runtime, namespace=namespace)
        assert made.returncode == 0, made.stderr
    parts = ("storage.yaml", "companions.yaml", "prepare.yaml", "supervisor.yaml", "job.yaml")
    stream = "---\n".join(text[part] for text in texts for part in parts if part in text)

    def judged() -> subprocess.CompletedProcess[str]:
        return lab.kubectl(
            "apply", "--dry-run=server", "--validate=strict", "-f", "-", input=stream, namespace=namespace
        )

    done = judged()
    if (
        kind == "trainjob" and "untime" in done.stderr
    ):  # its webhook asks a cache, which learns of the runtime in a moment
        lab.wait_for(lambda: judged().returncode == 0)
        done = judged()
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.count(f"{'job.batch' if kind == 'job' else kind}") >= len(SCENARIOS)


def test_each_kind_is_ended_by_its_deadline(lab: Lab, namespace: str) -> None:
    """The training-operator looks at it only when something happens to the job or its pods: that is made to happen."""
    for kind in KINDS:
        own = {"kubernetes.service_account": "default", "kubernetes.active_deadline": "1h"}
        text = files("own-claim", kind, namespace, **own)["job.yaml"]
        text = text.replace('"example', f'"{kind}-example')
        text = text.replace("activeDeadlineSeconds: 3600", "activeDeadlineSeconds: 3")
        lab.apply(re.sub("suspend: true", "suspend: false", text), namespace=namespace)

    def failed(kind: str) -> Any:
        conditions = lab.get(f"{PATHS[kind].format(namespace)}/{kind}-example")["status"]["conditions"]
        return [one for one in conditions if one["type"] == "Failed" and one["status"] == "True"]

    words = {kind: lab.wait_for(lambda kind=kind: failed(kind))[0] for kind in KINDS if kind != "pytorchjob"}
    touched: dict[str, Any] = {"metadata": {"annotations": {"touched": "now"}}}  # by now its time is over as well
    lab.patch(f"{PATHS['pytorchjob'].format(namespace)}/pytorchjob-example", touched)
    words["pytorchjob"] = lab.wait_for(lambda: failed("pytorchjob"))[0]
    assert "active longer than specified deadline" in words["pytorchjob"]["message"]
    assert words["trainjob"]["reason"] == words["job"]["reason"] == "DeadlineExceeded"
    assert words["jobset"]["reason"] == "FailJobSetFailurePolicyAction", "not restarted, which is its way with failures"
    lab.wait_for(lambda: not [pod for pod in lab.pods(namespace) if pod["status"]["phase"] == "Pending"])


# --- the supervisor's token
def token(lab: Lab, namespace: str) -> Client:
    done = lab.kubectl("create", "token", "example", namespace=namespace)
    assert done.returncode == 0, done.stderr
    return Client(lab.client.host, lab.client.port, lab.plane.certificate().decode(), done.stdout.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_the_supervisors_token_may_do_its_work_and_nothing_else(lab: Lab, namespace: str, kind: str) -> None:
    text = files("own-claim", kind, namespace)
    lab.apply(text["companions.yaml"], user="user", namespace=namespace)
    lab.apply(text["job.yaml"], user="user", namespace=namespace)  # suspended, and nowhere to run
    other = text["job.yaml"].replace('"example', '"other')
    lab.apply(other, user="user", namespace=namespace)
    supervisor = token(lab, namespace)
    core, own = f"/api/v1/namespaces/{namespace}", PATHS[kind].format(namespace)
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    patch: dict[str, Any] = {"metadata": {"annotations": {"seen": "1"}}}
    allowed = [
        ("GET", f"{core}/pods?labelSelector=a", None),
        ("PATCH", f"{core}/configmaps/example-state", {"data": {"run.json": "{}"}}),
        ("GET", f"{core}/configmaps/example-state", None),
        ("GET", f"{own}/example", None),
        ("GET", f"{own}?fieldSelector=metadata.name%3Dexample", None),
        ("PATCH", f"{own}/example", patch),
        ("DELETE", f"{core}/pods/nobody", None),
        ("PATCH", f"{core}/pods/nobody", patch),
        ("GET", f"{jobs}/example-prepare", None),
    ]
    for method, path, body in allowed:
        status, answer = supervisor.request(method, path, body, MERGE if method == "PATCH" else "application/json")
        assert status in (200, 404), f"{method} {path}: {status} {answer.decode()}"
    refused = [
        ("GET", f"{core}/secrets", None),
        ("GET", f"{core}/configmaps", None),
        ("GET", f"{core}/configmaps/example-files", None),
        ("PATCH", f"{core}/configmaps/example-files", {"data": {"config.yaml": "mine"}}),
        ("DELETE", f"{core}/configmaps/example-state", None),
        ("POST", f"{core}/pods", {"metadata": {"name": "x"}, "spec": {"containers": []}}),
        ("POST", f"{core}/pods/nobody/exec?command=sh", None),
        ("PATCH", f"{core}/pods/nobody/status", patch),
        ("POST", f"{core}/pods/nobody/eviction", {}),
        ("GET", f"{core}/pods/nobody/log", None),
        ("POST", f"{core}/serviceaccounts/default/token", {"spec": {}}),
        ("GET", own, None),
        ("GET", f"{own}/other", None),
        ("PATCH", f"{own}/other", patch),
        ("DELETE", f"{own}/example", None),
        ("PATCH", f"{jobs}/example-prepare", patch),
        ("PATCH", f"{jobs}/example-supervisor", patch),
        ("PATCH", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/example", {"rules": []}),
        ("GET", "/api/v1/namespaces/kube-system/pods", None),
        ("GET", "/api/v1/pods", None),
        ("GET", "/api/v1/nodes", None),
        ("GET", "/api/v1/namespaces", None),
    ]
    for method, path, body in refused:
        status, answer = supervisor.request(method, path, body, MERGE if method == "PATCH" else "application/json")
        assert status == 403, f"{method} {path}: {status} {answer.decode()}"
