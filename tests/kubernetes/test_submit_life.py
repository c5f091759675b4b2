"""The commands of a run's life against a real cluster: queued, cancelled, resumed, followed, deleted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_cli import Shell, make_run, names, objects
from kube_client import Client
from kube_lab import Lab
from kube_run import STEPS, Place, Run

from fullft_cluster.kubernetes_api import Api, connect
from fullft_cluster.kubernetes_api.failures import Permission

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")
pytestmark = pytest.mark.kubernetes
HERE = ("--backend", "kubernetes")


@pytest.fixture
def shell(lab: Lab, namespace: str, tmp_path: Path) -> Shell:
    return Shell(tmp_path, lab.kubeconfig("user", namespace))


def status(shell: Shell, *, code: int = 0) -> tuple[str, str]:
    found = json.loads(shell("status", "run", *HERE, "--json", code=code).stdout)
    return found["state"], found["reason"]


@pytest.fixture
def queue(lab: Lab) -> Iterator[str]:
    """A namespace with a Kueue queue for no GPU at all."""
    with lab.namespace(queue_gpus=0) as name:
        yield name


def test_a_job_that_kueue_holds_back_says_why(lab: Lab, queue: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path, lab.kubeconfig("user", queue))
    (local,) = lab.get(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{queue}/localqueues")["items"]
    name = local["metadata"]["name"]
    shell("submit", *shell.job("run", "jobset", f"kubernetes.queue={name}"))
    seen = [("", "")]

    def waits() -> bool:
        seen[0] = status(shell)
        return "quota" in seen[0][1]

    lab.wait_for(waits)
    state, reason = seen[0]
    assert state == "pending"
    assert reason.startswith(f"data preparation queued by Kueue in {name}: ")
    assert "cpu" in reason  # what there is not enough of, in Kueue's own words


def test_pods_that_do_not_start_or_were_killed_say_why(lab: Lab, namespace: str, shell: Shell) -> None:
    """Pods of a run that is made by hand, in the words of a scheduler and a kubelet."""
    make_run(lab.client, namespace, "run", **{"run.json": {"state": "running", "attempt": 1}})
    labels = {"app.kubernetes.io/managed-by": "fullft-cluster", "app.kubernetes.io/instance": "run"}
    labels["app.kubernetes.io/component"] = "worker"
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}}
    many = {"requests": {"nvidia.com/gpu": "64"}, "limits": {"nvidia.com/gpu": "64"}}
    for number, more in enumerate(({}, {"env": [secret]}, {"resources": many})):
        container = {"name": "node", "image": "none", "command": ["sleep", "100"], **more}
        spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"run-{number}-x8zqp", "labels": labels}}
        lab.apply(json.dumps({**pod, "spec": spec}), user="user", namespace=namespace)
    lab.wait_for(lambda: lab.pod(namespace, "run-0-x8zqp")["status"]["phase"] == "Running")
    lab.oom_kill(namespace, "run-0-x8zqp")
    seen = [""]

    def told() -> bool:
        seen[0] = status(shell)[1]
        return all(word in seen[0] for word in ("OOMKilled", "CreateContainerConfigError", "nvidia.com/gpu"))

    lab.wait_for(told, 30)
    assert "node-0: OOMKilled: it took more host memory than its limit. Raise kubernetes.memory" in seen[0]
    assert "node-1: the secret 'hub' is not there (CreateContainerConfigError). `kubectl create secret" in seen[0]
    assert "node-2: cannot be scheduled: 0/5 nodes are available" in seen[0]
    assert "It lacks nvidia.com/gpu (a pod asks for 64)" in seen[0]


def test_a_run_that_has_not_begun_is_cancelled_and_deleted(lab: Lab, namespace: str, shell: Shell) -> None:
    shell("submit", *shell.job("run", "job"))
    assert "no such run" in shell("status", "ran", *HERE, code=2).stderr
    assert "--backend kubernetes looks for it in the cluster" in shell("status", "run", code=2).stderr
    assert "is preparing" in shell("delete", "run", *HERE, code=2).stderr
    assert "waits or runs in the cluster" in shell("resume", "run", *HERE, code=2).stderr
    assert "has no logs" in shell("logs", "run", *HERE, code=2).stderr
    done = shell("cancel", "run", *HERE)
    assert done.stderr == "run: deleted jobs.batch/run, which had not begun\n"
    assert status(shell) == ("cancelled", "cancelled by the user")
    assert "has ended already (cancelled)" in shell("cancel", "run", *HERE, code=2).stderr
    again = shell("resume", "run", *HERE)
    assert again.stdout == "run\n" and "jobs.batch/run-prepare made" in again.stderr
    shell("delete", "run", *HERE, "--now")
    assert objects(lab.client, namespace) == {}
    assert "no such run" in shell("status", "run", *HERE, code=2).stderr


def test_a_claim_of_the_runs_own_outlives_it_unless_told(lab: Lab, namespace: str, shell: Shell) -> None:
    job = shell.job("run", "job")
    at = job.index("kubernetes.host_path=/shared")
    shell("submit", *job[: at - 1], *job[at + 1 :])
    assert set(objects(lab.client, namespace)) == names(kind="jobs") | {"persistentvolumeclaims/run-run"}
    told = shell("delete", "run", *HERE, "--now").stderr
    assert f"--namespace {namespace} --storage` deletes persistentvolumeclaims/run-run" in told
    assert set(objects(lab.client, namespace)) == {"persistentvolumeclaims/run-run"}
    (why,) = json.loads(shell("submit", *job[: at - 1], *job[at + 1 :], "--json", code=2).stdout)["error"]["problems"]
    assert "persistentvolumeclaims/run-run" in why["what"]
    assert "is deleted, but for persistentvolumeclaims/run-run" in shell("delete", "run", *HERE, code=2).stderr
    shell("delete", "run", *HERE, "--storage")
    assert objects(lab.client, namespace) == {}


def test_the_token_of_a_run_opens_nothing_but_its_own(lab: Lab, namespace: str, shell: Shell, tmp_path: Path) -> None:
    shell("submit", *shell.job("run", "pytorchjob"))
    account = _api_of_account(lab, namespace, "run", tmp_path)
    for verb, resource, group, name in (
        ("list", "pods", "", None),
        ("delete", "pods", "", None),
        ("get", "configmaps", "", "run-state"),
        ("patch", "configmaps", "", "run-state"),
        ("patch", "pytorchjobs", "kubeflow.org", "run"),
    ):
        assert account.may(Permission(verb, resource, group), namespace, name), (verb, resource)
    for verb, resource, group, name in (
        ("get", "secrets", "", None),
        ("list", "secrets", "", None),
        ("create", "pods", "", None),
        ("get", "configmaps", "", "other"),
        ("patch", "configmaps", "", "run-files"),
        ("patch", "pytorchjobs", "kubeflow.org", "other"),
        ("create", "pytorchjobs", "kubeflow.org", None),
        ("delete", "pytorchjobs", "kubeflow.org", "run"),
        ("create", "rolebindings", "rbac.authorization.k8s.io", None),
    ):
        assert not account.may(Permission(verb, resource, group), namespace, name), (verb, resource)
    assert not account.may(Permission("list", "pods"), "default")
    assert not account.may(Permission("list", "nodes"), None)


def _api_of_account(lab: Lab, namespace: str, name: str, directory: Path) -> Api:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    client: Client = lab.client
    token = client.json("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"})["status"][
        "token"
    ]
    config = json.loads(lab.kubeconfig("user", namespace).read_text())
    config["users"][0]["user"]["token"] = token
    kubeconfig = directory / "account.kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        return connect()


def test_from_submit_over_cancel_and_resume_to_the_end(
    lab: Lab, namespace: str, place: Place, undisturbed: Run, tmp_path: Path
) -> None:
    """A run that trains; each command by itself, with nothing but the API server between it and the run."""
    shell = Shell(tmp_path, lab.kubeconfig("user", namespace))
    run = place.submit("pytorchjob", namespace, "life")
    follow = shell.start("logs", "life", *HERE, "--follow", "--json")
    step = run.frozen_at(1, 2)
    now = json.loads(shell("status", "life", *HERE, "--json").stdout)
    assert (now["state"], now["attempt"], now["total_steps"]) == ("running", 1, STEPS)
    assert len(now["nodes"]) == 2
    assert [(one["name"], one["state"]) for one in json.loads(shell("list", *HERE, "--json").stdout)] == [
        ("life", "running")
    ]
    assert "is running" in shell("delete", "life", *HERE, code=2).stderr
    assert "asked for a checkpoint and a stop" in shell("cancel", "life", *HERE).stderr
    run.thaw()
    ended = json.loads(shell("status", "life", *HERE, "--watch", "--json").stdout.splitlines()[-1])
    assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled by the user")
    assert step <= ended["last_checkpoint_step"] == ended["step"] < STEPS
    assert ended["attempts"][0]["cause"] == "cancelled"
    assert _logs(follow) >= {"prepare", "supervisor", "master-0", "worker-0"}
    assert shell("resume", "life", *HERE).stdout == "life\n"
    last = json.loads(shell("status", "life", *HERE, "--watch", "--json").stdout.splitlines()[-1])
    assert (last["state"], last["step"], last["attempt"]) == ("completed", STEPS, 2)
    assert last["attempts"][1]["first_step"] == ended["step"] + 1  # not a step twice
    assert run.losses() == undisturbed.losses() and run.weights() == undisturbed.weights() != {}
    run.ends_well()
    assert "is completed" in shell("resume", "life", *HERE, code=2).stderr
    logs = shell("logs", "life", *HERE, "--tail", "3").stdout
    assert "==> supervisor <==" in logs and "==> master-0 <==" in logs
    shell("delete", "life", *HERE)
    assert objects(lab.client, namespace) == {}
    assert (run.path / "export" / "config.json").is_file()  # of the volume nothing is deleted


def _logs(follow: subprocess.Popen[str]) -> set[str]:
    """Return the logs that were followed, to their end."""
    out, err = follow.communicate(timeout=90)
    assert follow.returncode == 0, err
    return {json.loads(line)["log"] for line in out.splitlines()}
