"""Pods that start together or not at all, and the time after which they are ended for good."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes_scenarios import KINDS, SCENARIOS, objects, rendered, worker
from manifest_schemas import check, documents

from fullft_cluster.errors import UsageError
from fullft_cluster.lint import chosen, lint

NODES = 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "api_version", "scheduler", "where", "key"),
    [
        ("volcano", "scheduling.volcano.sh/v1beta1", "volcano", "annotations", "scheduling.k8s.io/group-name"),
        (
            "coscheduling",
            "scheduling.x-k8s.io/v1alpha1",
            "gang-scheduler",
            "labels",
            "scheduling.x-k8s.io/pod-group",
        ),
    ],
)
def test_the_scheduler_is_told_which_pods_belong_together(
    name: str, api_version: str, scheduler: str, where: str, key: str, kind: str
) -> None:
    found = objects(name, kind)
    group, pods = found["PodGroup"], [worker(name, kind)]
    if kind == "pytorchjob":
        pods = [role["template"] for role in found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"].values()]
        assert len(pods) == NODES
    assert group["apiVersion"] == api_version
    assert group["spec"]["minMember"] == NODES
    for pod in pods:
        assert pod["spec"]["schedulerName"] == scheduler
        assert pod["metadata"][where][key] == group["metadata"]["name"], "a group is found by its name in the namespace"
    text = rendered(SCENARIOS[name], kind)[0].files["job.yaml"]
    assert text.index("kind: PodGroup") < text.index("schedulerName"), "the group is there before its pods"
    assert not lint(text.encode(), "job.yaml", chosen((), ()))
    others = [item for item in documents(rendered(SCENARIOS[name], kind)[0].script) if item["kind"] == "Job"]
    others = [item for item in others if item["metadata"]["name"] != "example"]
    assert len(others) == 2
    assert not any("schedulerName" in str(item) or key in str(item) for item in others), "they must not be waited for"


def test_a_group_of_volcano_has_a_queue_and_a_priority() -> None:
    spec = objects("volcano", "jobset")["PodGroup"]["spec"]
    assert (spec["queue"], spec["priorityClassName"]) == ("research", "training")
    plain = {key: value for key, value in SCENARIOS["volcano"].items() if key not in NAMED}
    group = documents(rendered(plain, "jobset")[0].files["job.yaml"])[0]
    assert group["spec"] == {"minMember": NODES}
    assert objects("coscheduling", "jobset")["PodGroup"]["spec"] == {"minMember": NODES}


NAMED = ("kubernetes.volcano_queue", "kubernetes.priority_class")


def test_the_schemas_of_the_groups_are_closed() -> None:
    for name in ("volcano", "coscheduling"):
        group = objects(name, "job")["PodGroup"]
        check(group)
        for wrong in ({"minMembers": 2}, {"minMember": "two"}, {"minMember": 2, "queues": "x"}):
            with pytest.raises(Exception, match=r"minMembers|two|queues"):
                check({**group, "spec": wrong})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"gang": "volcano", "queue": "research"}, "gang"),
        ({"gang": "coscheduling", "volcano_queue": "research"}, "volcano_queue"),
        ({"volcano_queue": "research"}, "volcano_queue"),
        ({"gang": "volcano", "volcano_queue": "Re search"}, "volcano_queue"),
        ({"gang": "yunikorn"}, "gang"),
        ({"scheduler_name": "my scheduler"}, "scheduler_name"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=rf"kubernetes\.{key}"):
        rendered({**SCENARIOS["own-claim"], **{f"kubernetes.{name}": value for name, value in values.items()}})


# --- the active deadline
def deadlines(kind: str, **flags: Any) -> dict[str, int]:
    """Where the deadlines of the training's objects are, by kind of the object."""
    found = {}

    def look(value: Any, at: str) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "activeDeadlineSeconds":
                found[at] = item
            elif isinstance(item, dict | list):
                look(item, f"{at}.{key}")

    for item in documents(rendered({**SCENARIOS["own-claim"], **flags}, kind)[0].files["job.yaml"]):
        look(item, item["kind"])
    return found


PLACE = {
    "pytorchjob": "PyTorchJob.spec.runPolicy",
    "trainjob": "TrainJob.spec",
    "jobset": "JobSet.spec.replicatedJobs.0.template.spec",  # a JobSet has none of its own
    "job": "Job.spec",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("given", "seconds"), [("36h", 129600), ("7d", 604800), ("90m", 5400), ("1-00:00:00", 86400)])
def test_the_deadline_is_where_the_kind_ends_by_it(kind: str, given: str, seconds: int) -> None:
    assert deadlines(kind, **{"kubernetes.active_deadline": given}) == {PLACE[kind]: seconds}


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_none(kind: str) -> None:
    assert deadlines(kind, **{"kubernetes.active_deadline": "none"}) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_is_three_times_the_longest_estimate_and_a_day_at_least(kind: str) -> None:
    long = {"train.max_steps": 100_000}
    _, plan = rendered({**SCENARIOS["own-claim"], **long}, kind)
    assert plan.time.hours is not None and plan.time.hours.high > 8
    assert deadlines(kind, **long) == {PLACE[kind]: round(3 * plan.time.hours.high * 3600)}
    assert deadlines(kind, **{"train.max_steps": 1}) == {PLACE[kind]: 86400}


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_a_child_that_came_to_its_deadline_ends_the_jobset(kind: str) -> None:
    found = objects("volcano", kind)
    item = found["JobSet"]["spec"] if kind == "jobset" else found["TrainingRuntime"]["spec"]["template"]["spec"]
    (rule,) = item["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert set(rule["onJobFailureReasons"]) == {"PodFailurePolicy", "DeadlineExceeded"}


@pytest.mark.parametrize("given", ["", "soon", "0h", "59s", "-1h", "36", "25000d", "9" * 400 + "h", "1h 2", "{{ 1 }}"])
def test_a_deadline_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"kubernetes\.active_deadline") as caught:
        deadlines("job", **{"kubernetes.active_deadline": given})
    assert "Write 7d, 36h, or none" in str(caught.value)
