"""What is wrong is told before anything is made: all of it at once, each with the fix, by a real API server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from kube_cli import Shell, names, objects
from kube_lab import Lab
from kube_plane import ControlPlane
from kube_proxy import Proxy

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")
pytestmark = pytest.mark.kubernetes
SENTINEL = "hf_sentinel_0123456789"


@pytest.fixture
def shell(lab: Lab, namespace: str, tmp_path: Path) -> Shell:
    return Shell(tmp_path, lab.kubeconfig("user", namespace), HF_TOKEN=SENTINEL, WANDB_API_KEY=SENTINEL)


def problems(shell: Shell, *arguments: str, code: int) -> list[str]:
    """Return what a submit is refused for, one text each."""
    done = shell("submit", *arguments, "--json", code=code)
    found = json.loads(done.stdout)["error"]["problems"]
    return [f"{one['where']}: {one['what']}. {one['fix']}" for one in found]


def test_everything_that_is_named_and_not_there_is_told_at_once(lab: Lab, namespace: str, shell: Shell) -> None:
    settings = (
        "kubernetes.claim=nowhere",
        "kubernetes.service_account=nobody",
        "kubernetes.hf_token_secret=hub",
        "kubernetes.wandb_secret=wandb",
        "kubernetes.image_pull_secrets=[registry]",
        "kubernetes.priority_class=urgent",
        "kubernetes.queue=research",
        "kubernetes.queue_priority=high-and-mighty",
    )
    told = problems(shell, *_without_volume(shell.job("run", "jobset", *settings)), code=2)
    for part in (
        f"kubernetes.claim: there is no PersistentVolumeClaim 'nowhere' in namespace {namespace}",
        "kubernetes.service_account: there is no ServiceAccount 'nobody'",
        "kubernetes.hf_token_secret: there is no Secret 'hub'",
        "kubernetes.wandb_secret: there is no Secret 'wandb'",
        "kubernetes.image_pull_secrets: there is no Secret 'registry'",
        "kubernetes.queue: there is no LocalQueue 'research'",
    ):
        assert any(one.startswith(part) for one in told), (part, told)
    assert any("`kubectl create secret generic hub --from-literal=HF_TOKEN=..." in one for one in told)
    assert objects(lab.client, namespace) == {}


def _without_volume(job: list[str]) -> list[str]:
    at = job.index("kubernetes.host_path=/shared")
    return job[: at - 1] + job[at + 1 :]


def test_a_claim_for_one_node_cannot_hold_a_run_of_two(lab: Lab, namespace: str, shell: Shell) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "single"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    lab.apply(json.dumps(claim), namespace=namespace)
    cluster = Path(__file__).with_name("cluster.yaml")
    settings = ("kubernetes.claim=single", "resources.nodes=2")
    job = _without_volume(shell.job("run", "job", *settings))
    job[job.index("--cluster") + 1] = str(cluster)
    (told,) = problems(shell, *job, code=2)
    assert told.startswith("kubernetes.claim: 'single' is ReadWriteOnce, for one node, and the run has 2. Name a claim")
    assert objects(lab.client, namespace) == {}


def test_a_name_that_is_taken(lab: Lab, namespace: str, shell: Shell) -> None:
    other = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "run-prepare"}}
    pod = {"containers": [{"name": "x", "image": "none"}], "restartPolicy": "Never"}
    lab.apply(json.dumps({**other, "spec": {"suspend": True, "template": {"spec": pod}}}), namespace=namespace)
    (told,) = problems(shell, *shell.job("run"), code=2)
    assert told.startswith(
        f"--name: is taken in namespace {namespace}: there is jobs.batch/run-prepare. Choose another"
    )
    assert objects(lab.client, namespace) == {}


def test_without_a_name_the_first_that_is_free_in_the_cluster_is_taken(lab: Lab, namespace: str, shell: Shell) -> None:
    job = shell.job("run")
    at = job.index("--name")
    unnamed = job[:at] + job[at + 2 :]
    assert [shell("submit", *unnamed).stdout for _ in range(2)] == ["tiny-train\n", "tiny-train-2\n"]
    assert set(objects(lab.client, namespace)) == names(run="tiny-train") | names(run="tiny-train-2")
    listed = [json.loads(shell("list", "--backend", "kubernetes", "--json").stdout)]
    assert {one["name"] for one in listed[0]} == {"tiny-train", "tiny-train-2"}

    def waits() -> bool:
        listed[0] = json.loads(shell("list", "--backend", "kubernetes", "--json").stdout)
        return all("Insufficient cpu. It lacks cpu (a pod asks for 9k)" in one["reason"] for one in listed[0])

    lab.wait_for(waits)
    assert {one["state"] for one in listed[0]} == {"preparing"}


def test_a_quota_that_leaves_no_room(lab: Lab, namespace: str, shell: Shell) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    hard = {"requests.cpu": "100", "count/jobs.batch": "1", "pods": "50"}
    lab.apply(json.dumps({**quota, "spec": {"hard": hard}}), namespace=namespace)
    path = f"/api/v1/namespaces/{namespace}/resourcequotas/small"
    lab.wait_for(lambda: lab.get(path)["status"]["hard"] == hard)
    told = problems(shell, *shell.job("run"), code=4)
    assert any(
        one.startswith("ResourceQuota small: count/jobs.batch: the run needs 2, and 1 of 1 are left") for one in told
    )
    assert any(one.startswith("ResourceQuota small: requests.cpu: the run needs") for one in told)
    assert len(told) == 2
    assert objects(lab.client, namespace) == {}


def test_contexts_and_namespaces_that_are_not_there(lab: Lab, namespace: str, shell: Shell, tmp_path: Path) -> None:
    (told,) = problems(shell, *shell.job(), "--context", "tset", code=2)
    assert told == "--context: no context 'tset' in the kubeconfig. Did you mean 'test'?"
    admin = Shell(tmp_path, lab.kubeconfig("admin", namespace))
    (told,) = problems(admin, *shell.job(), "--namespace", "nowhere", code=2)
    assert told.startswith(
        "--namespace: there is no namespace 'nowhere'. Create it by `kubectl create namespace nowhere`"
    )
    done = shell("submit", *shell.job(), KUBECONFIG=str(tmp_path / "missing"), code=4)
    assert "no cluster is configured" in done.stderr
    for command in (
        ["status", "run"],
        ["list"],
        ["logs", "run"],
        ["cancel", "run"],
        ["resume", "run"],
        ["delete", "run"],
    ):
        assert "no context 'tset'" in shell(*command, "--context", "tset", code=2).stderr


def test_missing_permissions_are_told_together_and_the_commands_that_it_names_grant_them(
    lab: Lab, namespace: str, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, lab.kubeconfig("outsider", namespace))
    (told,) = problems(shell, *shell.job(), code=4)
    assert f"you (outsider) may not, in namespace {namespace}:" in told
    for part in ("get, create, patch, delete configmaps", "pytorchjobs.kubeflow.org", "jobs.batch"):
        assert part in told
    commands = re.search(r"Ask an administrator for `([^`]+)`", told)
    assert commands is not None
    for command in commands[1].split(" && "):
        done = lab.kubectl(*command.removeprefix("kubectl ").split())
        assert done.returncode == 0, done.stderr
    lab.wait_for(lambda: "may not, in namespace" not in shell.start("submit", *shell.job()).communicate()[1])
    # What is left to refuse: rights that the outsider does not have cannot be given to the supervisor.
    (told,) = problems(shell, *shell.job(), code=4)
    assert "you cannot give the supervisor rights that you do not have yourself" in told
    assert "kubernetes.service_account" in told
    assert objects(lab.client, namespace) == {}
    assert "may not list" in shell("list", "--backend", "kubernetes", code=4).stderr


def test_an_operator_that_is_not_installed(big_plane: ControlPlane, tmp_path: Path) -> None:
    shell = Shell(tmp_path, big_plane.kubeconfig("admin"))
    for kind, words in (
        ("pytorchjob", "training-operator.git/manifests/overlays/standalone?ref=v1.9.3"),
        ("jobset", "kubernetes-sigs/jobset/releases/download/"),
        ("trainjob", "kubeflow/trainer.git/manifests/overlays/manager"),
    ):
        told = problems(shell, *shell.job("run", kind), code=4)
        assert any(f"{kind}s." in one and words in one for one in told), told
    (told,) = problems(shell, *shell.job("run", "job", "kubernetes.queue=q"), code=4)
    assert "localqueues.kueue.x-k8s.io: Kueue is not installed" in told
    client = big_plane.client()
    assert objects(client, "default") == {}
    # The kind that needs no operator, judged by the server; and a note, as no node is of that type.
    asked = ("kubernetes.node_selector={nvidia.com/gpu.product: B300}",)
    done = shell("submit", *shell.job("run", "job", *asked), "--dry-run=server")
    assert "services/run accepted (server dry run)" in done.stdout
    assert "no node has nvidia.com/gpu.product=B300" in done.stderr
    assert objects(client, "default") == {}


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob", "jobset", "job"])
def test_the_server_and_its_webhooks_judge_and_nothing_is_made(
    lab: Lab, namespace: str, shell: Shell, kind: str
) -> None:
    done = shell("submit", *shell.job("run", kind), "--dry-run=server")
    wanted = {name.partition("/")[0] for name in names(kind=f"{kind}s")}
    judged = {line.partition(".")[0].partition("/")[0] for line in done.stdout.splitlines()}
    assert wanted - judged <= {"trainjobs", "rolebindings"}  # refused before what they refer to is there
    for lacking in wanted - judged:
        assert re.search(rf"{lacking}\S*/run cannot be judged before its \w+ run is there", done.stderr)
    assert objects(lab.client, namespace) == {}


def test_no_secret_is_read_or_written(lab: Lab, namespace: str, tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"HF_TOKEN": SENTINEL}}
    lab.apply(json.dumps(secret), namespace=namespace)
    proxy = Proxy(lab.kubeconfig("user", namespace), tmp_path)
    try:
        shell = Shell(tmp_path, proxy.kubeconfig, HF_TOKEN=SENTINEL, WANDB_API_KEY=SENTINEL)
        told = ""
        for command in (
            ["submit", *shell.job("run", "pytorchjob", "kubernetes.hf_token_secret=hub")],
            ["status", "run", "--backend", "kubernetes", "--json"],
            ["cancel", "run", "--backend", "kubernetes"],
            ["delete", "run", "--backend", "kubernetes", "--now"],
        ):
            done = shell(*command)
            told += done.stdout + done.stderr
            told += json.dumps(objects(lab.client, namespace))
    finally:
        proxy.close()
    assert SENTINEL not in told
    assert "user-token" not in told
    asked = [question for question in proxy.questions if "/secrets" in question.path]
    assert asked and all("PartialObjectMetadata" in question.accept for question in asked)
    assert not any(SENTINEL.encode() in question.body for question in proxy.questions)
    assert objects(lab.client, namespace) == {}
