"""What keeps pods from running, as people read it; in the words that schedulers, kubelets and registries really use."""

from __future__ import annotations

from typing import Any

import pytest

from fullft_cluster.backends.kubernetes_jobs import end_of, queued
from fullft_cluster.backends.kubernetes_pods import pod_problems, short_name


def pod(phase: str = "Pending", **parts: Any) -> dict[str, Any]:
    """A worker pod that asks for 8 GPUs on A100 nodes."""
    container = {
        "name": "node",
        "image": "registry.example.org/nlp/fullft-cluster:0.1.0",
        "resources": {
            "requests": {"cpu": "86", "memory": "640Gi"},
            "limits": {"memory": "640Gi", "nvidia.com/gpu": "8"},
        },
    }
    return {
        "metadata": {"name": "run-node-0-1-x8zqp", "uid": "u", **parts.pop("metadata", {})},
        "spec": {
            "containers": [container],
            "nodeName": "n7",
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        },
        "status": {"phase": phase, **parts},
    }


def unschedulable(words: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    return pod(conditions=[condition])


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=[{"name": "node", "image": "x.example/y:1", "state": state}])


def ended(phase: str, *, code: int, reason: str = "Error", message: str = "", now: bool = True) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    one = {"name": "node", "state": state if now else {"running": {}}, "lastState": {} if now else state}
    return pod(phase, containerStatuses=[one])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 "
            "Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful.",
            [
                "cannot be scheduled: 0/3 nodes are available",
                "nvidia.com/gpu (a pod asks for 8)",
                "a toleration of node-role.kubernetes.io/control-plane (kubernetes.tolerations)",
            ],
        ),
        (
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
            ["a free node with nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB"],
        ),
        (
            "0/4 nodes are available: 4 Insufficient memory. no new claims to deallocate, preemption: 0/4 nodes",
            ["are available: 4 Insufficient memory. It lacks memory (a pod asks for 640Gi)"],
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint(s) {team: nlp}.",
            ["a toleration of team=nlp (kubernetes.tolerations)"],
        ),
        ('0/1 nodes are available: persistentvolumeclaim "runs" not found.', ["the claim runs, which is not there"]),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            ["a volume for its claim, which is not bound"],
        ),
        ("no nodes available to schedule pods", ["It lacks any node"]),
    ],
)
def test_what_the_scheduler_misses(words: str, told: list[str]) -> None:
    (problem,) = pod_problems(unschedulable(words))
    for part in told:
        assert part in problem
    assert "preemption" not in problem


@pytest.mark.parametrize(
    ("reason", "message", "told"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "x.example/y:1"', "the image x.example/y:1 cannot be pulled"),
        ("ErrImagePull", "rpc error: code = NotFound desc = x.example/y:1: not found", "NotFound"),
        ("ErrImagePull", "failed to authorize: 401 Unauthorized", "Name a secret in kubernetes.image_pull_secrets"),
        ("ErrImageNeverPull", "", "kubernetes.image_pull_policy is Never"),
        ("InvalidImageName", "", "not the name of an image"),
        ("CreateContainerConfigError", 'secret "hub" not found', "`kubectl create secret generic hub"),
        ("CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret ml/hub", "'hub' has no key HF_TOKEN"),
        ("RunContainerError", 'exec: "python3": not found', "its container cannot be made (RunContainerError): exec"),
    ],
)
def test_containers_that_do_not_start(reason: str, message: str, told: str) -> None:
    (problem,) = pod_problems(waiting(reason, message))
    assert told in problem
    assert reason in problem or "Never" in problem


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_what_is_on_its_way_is_no_problem(reason: str) -> None:
    assert pod_problems(waiting(reason)) == []
    assert pod_problems(pod("Running")) == []
    assert pod_problems(pod("Succeeded")) == []


@pytest.mark.parametrize("now", [True, False])
def test_out_of_host_memory_names_the_limit(now: bool) -> None:
    (problem,) = pod_problems(ended("Failed" if now else "Running", code=137, reason="OOMKilled", now=now))
    assert "OOMKilled: it took more host memory than its limit of 640Gi" in problem
    assert "kubernetes.memory" in problem


@pytest.mark.parametrize("code", [75, 93, 143])
def test_ends_that_the_policy_is_made_for_are_the_runs_to_explain(code: int) -> None:
    assert pod_problems(ended("Failed", code=code)) == []


def test_other_ends_bring_the_last_words() -> None:
    problem = ended("Failed", code=2, message="error: data.train: no such file\n")
    assert pod_problems(problem) == ["node ended with exit code 2: error: data.train: no such file"]


def test_evictions_lost_nodes_and_crash_loops() -> None:
    evicted = pod("Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert pod_problems(evicted) == ["Evicted: The node was low on resource: memory."]
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for a/b"}
    assert pod_problems(pod("Failed", conditions=[disruption])) == ["PreemptionByScheduler: for a/b"]
    not_ready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
    lost = pod("Running", metadata={"deletionTimestamp": "2026-01-05T10:00:00Z"}, conditions=[not_ready])
    assert pod_problems(lost) == ["its node n7 is lost"]
    crashing = waiting("CrashLoopBackOff")
    crashing["status"]["containerStatuses"][0] |= {"restartCount": 4, "lastState": {"terminated": {"exitCode": 1}}}
    assert pod_problems(crashing) == ["node has ended 4 times, last with exit code 1"]
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    held = pod(conditions=[gated])
    held["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert pod_problems(held) == ["held back by kueue.x-k8s.io/admission"]


def test_a_volume_that_cannot_be_mounted_is_told_by_an_event() -> None:
    event = {"reason": "FailedMount", "message": "MountVolume.SetUp failed: nfs: no such host"}
    assert pod_problems(waiting("ContainerCreating"), [event]) == [
        "its volume cannot be mounted: MountVolume.SetUp failed: nfs: no such host"
    ]
    assert pod_problems(pod("Running"), [event]) == []


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("run-master-0", "master-0"),
        ("run-worker-12", "worker-12"),
        ("run-node-0-3-x8zqp", "node-3"),
        ("run-3-x8zqp", "node-3"),
        ("run-prepare-x8zqp", "prepare"),
        ("run-supervisor-x8zqp", "supervisor"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name, "run") == short


def job(**spec: Any) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": "research"}
    return {"kind": "JobSet", "metadata": {"name": "run", "uid": "j", "labels": labels}, "spec": spec, "status": {}}


def workload(name: str, created: str, owner: str = "j", **conditions: tuple[str, str, str]) -> dict[str, Any]:
    told = [
        {"type": kind, "status": value, "reason": reason, "message": message}
        for kind, (value, reason, message) in conditions.items()
    ]
    metadata = {"name": name, "creationTimestamp": created, "ownerReferences": [{"uid": owner}]}
    return {"metadata": metadata, "status": {"conditions": told}}


def test_kueues_words_are_those_of_the_newest_workload_of_the_job() -> None:
    short = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu, 4 more needed"
    found = [
        workload("old", "2026-01-01T00:00:00Z", QuotaReserved=("False", "Pending", "old words")),
        workload("new", "2026-01-02T00:00:00Z", QuotaReserved=("False", "Pending", short)),
        workload("other", "2026-01-03T00:00:00Z", owner="x", QuotaReserved=("False", "Pending", "of another")),
    ]
    assert queued(job(suspend=True), found) == f"queued by Kueue in research: {short}"
    assert queued(job(suspend=True), []) == "queued by Kueue in research"
    preempted = workload(
        "w",
        "2026-01-02T00:00:00Z",
        Evicted=("True", "Preempted", "Preempted to accommodate a workload"),
        QuotaReserved=("False", "Pending", short),
    )
    assert queued(job(), [preempted]) == (
        f"queued by Kueue in research: preempted: Preempted to accommodate a workload; {short}"
    )


def test_how_each_kind_says_that_it_has_ended() -> None:
    for kind, end in (
        ("Complete", "completed"),
        ("Completed", "completed"),
        ("Succeeded", "completed"),
        ("Failed", "failed"),
    ):
        one = job() | {"status": {"conditions": [{"type": kind, "status": "True", "message": "why"}]}}
        assert end_of(one) == (end, "why")
        one["status"]["conditions"][0]["status"] = "False"
        assert end_of(one) == (None, "")
