"""The cluster of the tests is one: what the other tests in this folder take for granted about it."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_client import Client
from kube_lab import Lab

pytestmark = pytest.mark.kubernetes

Make = Callable[..., None]
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
ON_TERM = "trap 'echo stopped; exit 75' TERM; echo up; sleep 100 & wait"
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "operator": "Exists"}


@pytest.fixture
def make(lab: Lab, namespace: str) -> Iterator[Make]:
    """Make a pod of one container that runs a line of shell. Its object stays after its end, as a Job's pods do."""
    made = []

    def pod(name: str, script: str, *, container: dict[str, Any] | None = None, **spec: Any) -> None:
        only = {"name": "main", "image": "none", "command": ["sh", "-c", script], **(container or {})}
        meta = {"name": name, "finalizers": ["tests.fullft-cluster/keep"]}
        whole = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [only], **spec}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": whole}
        lab.apply(json.dumps(item), user="user", namespace=namespace)
        made.append(name)

    yield pod
    for name in made:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        if lab.client.find(path):
            lab.patch(path, {"metadata": {"finalizers": None}})


def reaches(lab: Lab, namespace: str, name: str, phase: str) -> dict[str, Any]:
    """Wait until the pod is in that phase and return it."""
    lab.wait_for(lambda: lab.pod(namespace, name)["status"]["phase"] == phase)
    return lab.pod(namespace, name)


def main(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the status of its container."""
    return dict(pod["status"]["containerStatuses"][0])


def disruption(pod: dict[str, Any]) -> str | None:
    """Return the reason of its condition DisruptionTarget."""
    found = [each["reason"] for each in pod["status"]["conditions"] if each["type"] == "DisruptionTarget"]
    return str(found[0]) if found else None


def logs(lab: Lab, namespace: str, *arguments: str) -> str:
    """Return what kubectl says of a pod's log, as its user."""
    return lab.kubectl("logs", *arguments, namespace=namespace, user="user").stdout


def test_init_containers_come_first_and_volumes_are_what_they_are(lab: Lab, namespace: str, make: Make) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "files"}, "data": {"greeting": "hello\n"}}
    storage = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "runs"}, "spec": storage}
    lab.apply(f"{json.dumps(config)}\n---\n{json.dumps(claim)}", user="user", namespace=namespace)
    mounts = [{"name": name, "mountPath": f"/new/{name}"} for name in ("files", "runs", "memory")]
    copy = ["cp", "/new/files/greeting", "/new/runs/first"]
    make(
        "mounted",
        "cat /new/runs/first; id -u; stat -f -c %T /new/memory; echo no > /new/files/x || echo read-only",
        container={"volumeMounts": mounts},
        initContainers=[{"name": "first", "image": "none", "command": copy, "volumeMounts": mounts}],
        securityContext={"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "runAsNonRoot": True},
        volumes=[
            {"name": "files", "configMap": {"name": "files"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    )
    reaches(lab, namespace, "mounted", "Succeeded")
    said = logs(lab, namespace, "mounted").splitlines()
    assert (said[:3], said[-1]) == (["hello", "1000", "tmpfs"], "read-only")
    assert (lab.claim(namespace, "runs") / "first").read_text() == "hello\n"


def test_a_pods_token_has_its_accounts_rights_and_no_others(lab: Lab, namespace: str, make: Make) -> None:
    ask = f"""
import ssl, time, urllib.request
context = ssl.create_default_context(cafile="{ACCOUNT}/ca.crt")
token = open("{ACCOUNT}/token").read()
request = urllib.request.Request("https://kubernetes.default.svc/version")
request.add_header("Authorization", f"Bearer {{token}}")
print(urllib.request.urlopen(request, context=context).status, token, flush=True)
time.sleep(100)
"""
    make("with-token", "", container={"command": [sys.executable, "-c", ask]})
    status, token = lab.wait_for(lambda: logs(lab, namespace, "with-token").split())
    assert status == "200"
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["sub"] == f"system:serviceaccount:{namespace}:default"
    account = Client(lab.client.host, lab.client.port, lab.plane.certificate().decode(), token)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert account.request("GET", pods)[0] == 403  # it is known, and has no rights yet
    grant = ("create", "rolebinding", "look", "--clusterrole=view", f"--serviceaccount={namespace}:default")
    assert lab.kubectl(*grant, namespace=namespace, user="user").returncode == 0
    lab.wait_for(lambda: account.request("GET", pods)[0] == 200)
    assert account.request("GET", "/api/v1/namespaces/default/pods")[0] == 403


def test_users_may_what_they_may(lab: Lab, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert lab.plane.request("GET", pods, user="user")[0] == 200
    assert lab.plane.request("GET", "/api/v1/nodes", user="user")[0] == 403
    assert lab.plane.request("GET", "/api/v1/namespaces/default/pods", user="user")[0] == 403
    assert lab.plane.request("GET", pods, user="outsider")[0] == 403


def test_a_container_starts_again_in_place_and_both_logs_are_there(lab: Lab, namespace: str, make: Make) -> None:
    script = "if [ -e /kept/x ]; then echo second; sleep 100; fi; touch /kept/x; echo one; echo two; exit 3"
    kept = {"volumes": [{"name": "kept", "emptyDir": {}}], "restartPolicy": "OnFailure"}
    make("again", script, container={"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}, **kept)
    lab.wait_for(lambda: main(lab.pod(namespace, "again"))["restartCount"] == 1)
    assert main(lab.pod(namespace, "again"))["lastState"]["terminated"]["exitCode"] == 3
    lab.wait_for(lambda: logs(lab, namespace, "again") == "second\n")
    before = logs(lab, namespace, "again", "--previous", "--tail=1", "--timestamps")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z two\n", before)


def test_an_evicted_pod_is_asked_to_stop_and_says_how_it_ended(lab: Lab, namespace: str, make: Make) -> None:
    make("evicted", ON_TERM)
    lab.wait_for(lambda: logs(lab, namespace, "evicted") == "up\n")
    lab.evict(namespace, "evicted")
    pod = reaches(lab, namespace, "evicted", "Failed")
    assert "deletionTimestamp" in pod["metadata"]
    assert (main(pod)["state"]["terminated"]["exitCode"], disruption(pod)) == (75, "EvictionByEvictionAPI")
    assert logs(lab, namespace, "evicted") == "up\nstopped\n"


def test_ends_that_the_kubelet_decides(lab: Lab, namespace: str, make: Make) -> None:
    for name in ("big", "squeezed"):
        make(name, ON_TERM)
        lab.wait_for(lambda name=name: logs(lab, namespace, name) == "up\n")  # type: ignore[misc]
    lab.oom_kill(namespace, "big")
    ended = main(reaches(lab, namespace, "big", "Failed"))["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    lab.pressure_evict(namespace, "squeezed")
    pod = reaches(lab, namespace, "squeezed", "Failed")
    assert (pod["status"]["reason"], disruption(pod)) == ("Evicted", "TerminationByKubelet")
    make("nowhere", "", container={"image": "registry.example.org/absent:1"})
    waiting = lab.wait_for(lambda: main(lab.pod(namespace, "nowhere"))["state"]["waiting"])
    assert waiting["reason"] in ("ErrImagePull", "ImagePullBackOff")


def test_a_lost_nodes_pods_stay_until_somebody_lets_go_of_them(lab: Lab, namespace: str, make: Make) -> None:
    make(
        "orphan",
        ON_TERM,
        tolerations=[UNREACHABLE | {"tolerationSeconds": 1}],
        nodeSelector={"kubernetes.io/hostname": "gpu-3"},
    )
    lab.wait_for(lambda: logs(lab, namespace, "orphan") == "up\n")
    lab.lose("gpu-3")
    lab.wait_for(lambda: disruption(lab.pod(namespace, "orphan")) == "DeletionByTaintManager")
    pod = lab.pod(namespace, "orphan")
    assert (pod["status"]["phase"], "deletionTimestamp" in pod["metadata"]) == (
        "Running",
        True,
    )  # nobody says otherwise
    lab.bring_back("gpu-3")
    assert main(reaches(lab, namespace, "orphan", "Failed"))["state"]["terminated"]["exitCode"] == 137


def test_a_pod_that_was_cut_off_goes_on_until_its_node_hears_of_its_end(lab: Lab, namespace: str, make: Make) -> None:
    script = "while sleep 0.1; do date +%s%N > /shared/alive; done"
    export = lab.nfs("files.example.org", f"/exports/{namespace}")
    volume = {"name": "shared", "nfs": {"server": "files.example.org", "path": f"/exports/{namespace}"}}
    mounts = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    make("cut-off", script, container=mounts, volumes=[volume], nodeSelector={"kubernetes.io/hostname": "gpu-2"})
    alive = export / "alive"
    lab.wait_for(alive.exists)
    lab.cut_off("gpu-2")
    lab.patch(f"/api/v1/namespaces/{namespace}/pods/cut-off", {"metadata": {"finalizers": None}})
    lab.delete_pod(namespace, "cut-off", grace=0)
    assert lab.pods(namespace) == []
    seen = alive.read_text()
    lab.wait_for(lambda: alive.read_text() != seen)
    lab.bring_back("gpu-2")
    lab.wait_for(lambda: _still(alive))


def _still(file: Path) -> bool:
    """Whether nobody writes to the file any more: it is written ten times a second."""
    before = file.read_text()
    time.sleep(1)
    return file.read_text() == before


def test_a_queue_of_kueue_admits(lab: Lab) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none", "command": ["true"]}]}
    pod["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 2}}  # type: ignore[index]
    with lab.namespace(queue_gpus=2) as namespace:
        meta = {"name": "queued", "labels": {"kueue.x-k8s.io/queue-name": "training"}}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": {"spec": pod}}}
        lab.apply(json.dumps(job), user="user", namespace=namespace)
        lab.wait_for(lambda: lab.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/queued")["status"].get("succeeded"))
        (workload,) = lab.get(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads")["items"]
        assert "Admitted" in {each["type"] for each in workload["status"]["conditions"]}


def test_pods_outlive_the_api_server(lab: Lab, namespace: str, make: Make) -> None:
    make("outlives", "echo up; sleep 2; exit 7")
    reaches(lab, namespace, "outlives", "Running")
    lab.pause_api(3)
    assert main(reaches(lab, namespace, "outlives", "Failed"))["state"]["terminated"]["exitCode"] == 7
