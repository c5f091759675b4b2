"""What objects of the API say about themselves, and the patch that keeps pods off nodes. Pure."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.runtime import pod_state
from fullft_cluster.runtime.kubernetes_target import KINDS, Target, _steps
from fullft_cluster.runtime.policy import SCHEDULER_CAUSES


def disrupted(why: str, status: str = "True", **more: Any) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": "False"},
        {"type": "DisruptionTarget", "status": status, "reason": why},
    ]
    return {"metadata": {}, "status": {"phase": "Failed", "conditions": conditions, **more}}


def terminated(reason: str, where: str = "state", **more: Any) -> dict[str, Any]:
    containers = [{"state": {"running": {}}}, {"state": {}, where: {"terminated": {"reason": reason, "exitCode": 137}}}]
    return {"metadata": {}, "status": {"containerStatuses": containers, **more}}


@pytest.mark.parametrize(
    ("pod", "word"),
    [
        (disrupted("PreemptionByScheduler"), "PREEMPTED"),
        (disrupted("EvictionByEvictionAPI"), "REQUEUED"),
        (disrupted("TerminationByKubelet"), "REQUEUED"),
        (disrupted("DeletionByTaintManager"), "NODE_FAIL"),
        (disrupted("DeletionByPodGC"), "NODE_FAIL"),
        (disrupted("SomethingOfTomorrow"), None),
        (disrupted("PreemptionByScheduler", status="False"), None),  # it was to be, and then was not
        (terminated("OOMKilled"), "OUT_OF_MEMORY"),
        (terminated("OOMKilled", where="lastState"), "OUT_OF_MEMORY"),
        (terminated("Error"), None),
        (
            terminated("OOMKilled", conditions=disrupted("EvictionByEvictionAPI")["status"]["conditions"]),
            "OUT_OF_MEMORY",
        ),
        (
            disrupted("TerminationByKubelet", reason="Evicted", message="The node was low on resource: memory."),
            "OUT_OF_MEMORY",
        ),
        (disrupted("TerminationByKubelet", reason="Evicted", message="ephemeral local storage usage exceeds"), None),
        ({"metadata": {}}, None),
        ({"metadata": {}, "status": {}}, None),
        ({"metadata": {}, "status": {"conditions": None, "containerStatuses": None}}, None),
        ({"metadata": {}, "status": {"containerStatuses": [{"state": None, "lastState": {"terminated": None}}]}}, None),
    ],
)
def test_what_ended_a_pod(pod: dict[str, Any], word: str | None) -> None:
    assert pod_state.end_of_pod(pod) == word


def test_every_word_is_one_of_the_policys() -> None:
    assert set(pod_state.DISRUPTIONS.values()) <= set(SCHEDULER_CAUSES)


def test_of_several_pods_the_word_that_explains_most() -> None:
    """A lost node tears the others down; who runs out of memory is not the one that was asked to go."""
    lost, evicted, oom = (
        disrupted("DeletionByTaintManager"),
        disrupted("EvictionByEvictionAPI"),
        terminated("OOMKilled"),
    )
    preempted, silent = disrupted("PreemptionByScheduler"), {"metadata": {}}
    assert pod_state.end_of_world([]) is None
    assert pod_state.end_of_world([silent, terminated("Error")]) is None
    assert pod_state.end_of_world([silent, evicted]) == "REQUEUED"
    assert pod_state.end_of_world([evicted, preempted]) == "PREEMPTED"
    assert pod_state.end_of_world([evicted, lost, preempted]) == "NODE_FAIL"
    assert pod_state.end_of_world([lost, oom]) == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    ("status", "ended", "ready"),
    [
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, False, True),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "Unknown"}]}, False, False),
        ({"phase": "Pending"}, False, False),
        ({"phase": "Succeeded"}, True, False),
        ({"phase": "Failed", "conditions": []}, True, False),
        ({}, False, False),
    ],
)
def test_phases(status: dict[str, Any], ended: bool, ready: bool) -> None:
    pod = {"metadata": {}, "status": status}
    assert (pod_state.ended(pod), pod_state.ready(pod)) == (ended, ready)
    assert not pod_state.leaving(pod)
    assert pod_state.leaving({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})


@pytest.mark.parametrize(
    ("conditions", "end"),
    [
        ([], None),
        (None, None),
        ([{"type": "Running", "status": "True"}], None),
        ([{"type": "Failed", "status": "False", "message": "x"}], None),
        ([{"type": "Succeeded", "status": "True", "message": "done"}], ("completed", "done")),  # PyTorchJob
        (
            [{"type": "Complete", "status": "True", "reason": "CompletionsReached"}],
            ("completed", "CompletionsReached"),
        ),  # Job
        ([{"type": "Completed", "status": "True"}], ("completed", "Completed")),  # JobSet
        ([{"type": "FailureTarget", "status": "True"}], None),  # a Job whose pods are still leaving
        (
            [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}],
            ("failed", "too long"),
        ),
        ([{"type": "Suspended", "status": "True"}, {"type": "Failed", "status": "True"}], ("failed", "Failed")),
    ],
)
def test_how_a_job_has_ended(conditions: Any, end: tuple[str, str] | None) -> None:
    assert pod_state.end_of_job({"status": {"conditions": conditions}}) == end
    assert pod_state.end_of_job({}) is None


@pytest.mark.parametrize(
    ("spec", "suspended"),
    [
        ({"suspend": True}, True),
        ({"runPolicy": {"suspend": True}}, True),
        ({"suspend": False}, False),
        ({"runPolicy": {}}, False),
        ({}, False),
    ],
)
def test_whether_a_job_is_suspended(spec: dict[str, Any], suspended: bool) -> None:
    assert pod_state.suspended({"spec": spec}) is suspended
    assert pod_state.suspended({}) is False


# --- the run's own objects
@pytest.mark.parametrize(
    ("kind", "path", "template"),
    [
        ("pytorchjob", "/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs/x", None),
        (
            "jobset",
            "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets/x",
            "/apis/batch/v1/namespaces/ml/jobs/x-node-0",
        ),
        (
            "trainjob",
            "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs/x",
            "/apis/batch/v1/namespaces/ml/jobs/x-node-0",
        ),
        ("job", "/apis/batch/v1/namespaces/ml/jobs/x", None),
    ],
)
def test_where_the_objects_are(kind: str, path: str, template: str | None) -> None:
    target = Target(name="x", namespace="ml", kind=kind)
    assert (target.path, target.template_path) == (path, template or path)
    assert target.state_path == "/api/v1/namespaces/ml/configmaps/x-state"
    assert target.pods_path == "/api/v1/namespaces/ml/pods"
    assert target.pods_selector == "app.kubernetes.io/instance=x,app.kubernetes.io/component=worker"
    assert kind in KINDS


# --- the affinity: judged as the scheduler judges it
NODES = ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]
ZONES = {"gpu-0": "a", "gpu-1": "a", "gpu-2": "b", "gpu-3": "b"}

expression = st.builds(
    lambda operator, values: {"key": "zone", "operator": operator, "values": values},
    st.sampled_from(["In", "NotIn"]),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2, unique=True),
)
named = st.builds(lambda node: {"key": "metadata.name", "operator": "In", "values": [node]}, st.sampled_from(NODES))
term = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": st.lists(expression, min_size=1, max_size=2),
        "matchFields": st.lists(named, min_size=1, max_size=1),
    },
).filter(bool)  # a term without anything matches no node: nobody writes that
preferred = st.lists(st.builds(lambda one: {"weight": 1, "preference": one}, term), max_size=1)
node_affinity = st.fixed_dictionaries(
    {},
    optional={
        "requiredDuringSchedulingIgnoredDuringExecution": st.fixed_dictionaries(
            {"nodeSelectorTerms": st.lists(term, min_size=1, max_size=3)}
        ),
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    },
)
POD_AFFINITY = {
    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": {"topologyKey": "rack"}}]
}
spec_of_pods = st.fixed_dictionaries(
    {"containers": st.just([{"name": "node"}])},
    optional={
        "affinity": st.one_of(
            st.none(),
            st.fixed_dictionaries({}, optional={"nodeAffinity": node_affinity, "podAffinity": st.just(POD_AFFINITY)}),
        )
    },
)


def holds(requirement: dict[str, Any], value: str) -> bool:
    return (value in requirement["values"]) == (requirement["operator"] == "In")


def admits(spec: dict[str, Any], node: str) -> bool:
    """Whether the required affinity of a node lets a pod of this spec run there."""
    own = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = own.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(
        all(holds(one, ZONES[node]) for one in term.get("matchExpressions", ()))
        and all(holds(one, node) for one in term.get("matchFields", ()))
        and bool(term.get("matchExpressions") or term.get("matchFields"))
        for term in required["nodeSelectorTerms"]
    )


def patched(spec: dict[str, Any], nodes: list[str]) -> dict[str, Any]:
    before = copy.deepcopy(spec)
    (step,) = _steps("/root", spec, nodes)
    assert spec == before, "what was read is left as it is"
    assert (step["op"], step["path"]) == ("add", "/root/affinity"), (
        "`add` replaces what is there, and needs nothing there"
    )
    return {**spec, "affinity": step["value"]}


@settings(max_examples=500, deadline=None)
@given(spec=spec_of_pods, off=st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True))
def test_the_patch_excludes_each_node_and_keeps_the_rest(spec: dict[str, Any], off: list[str]) -> None:
    after = patched(spec, off)
    for node in NODES:
        assert admits(after, node) == (admits(spec, node) and node not in off)
    old = dict(spec.get("affinity") or {})
    new = dict(after["affinity"])
    old_node, new_node = dict(old.pop("nodeAffinity", {})), dict(new.pop("nodeAffinity"))
    assert new == old
    preferences = "preferredDuringSchedulingIgnoredDuringExecution"
    assert new_node.get(preferences) == old_node.get(preferences)
    for one in new_node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]:
        assert all(len(field["values"]) == 1 for field in one["matchFields"]), "the server takes one name, no more"


@settings(max_examples=200, deadline=None)
@given(spec=spec_of_pods, first=st.sampled_from(NODES), second=st.sampled_from(NODES))
def test_a_later_list_of_nodes_stands_for_the_earlier_one(spec: dict[str, Any], first: str, second: str) -> None:
    """The list is always the whole one; `resume` empties it."""
    again = patched(patched(spec, [first]), [second])
    assert again == patched(spec, [second])
    assert patched(again, [second]) == again
