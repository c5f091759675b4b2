"""A run as it is read from an API server: which objects and events are its own, and what is no name of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Answer, Asked, FakeApi, api_of, refusal
from kubernetes_scenarios import SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.backends.kubernetes_status import kubernetes_status
from fullft_cluster.backends.kubernetes_view import read_view, read_views
from fullft_cluster.errors import UsageError
from fullft_cluster.kubernetes_api import Api, Forbidden, Json

CONFIG = rendered(SCENARIOS["processes"], "job")[0].files["config.yaml"]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path)
    yield server
    server.close()


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    return api_of(fake, monkeypatch)


def labelled(name: str, part: str, **more: Any) -> Json:
    labels = {"app.kubernetes.io/instance": "prio", "app.kubernetes.io/component": part}
    metadata = {"name": name, "uid": f"{name}-uid", "labels": labels, "creationTimestamp": "2026-01-05T10:00:00Z"}
    return {"metadata": metadata, "status": {}, "spec": {}, **more}


def cluster(**lists: list[Json]) -> Callable[[Asked], Answer]:
    """Answer lists by the plural of their kind."""

    def answer(asked: Asked) -> Answer:
        items = lists.get(asked.path.rpartition("/")[2], [])
        return Answer(200, {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})

    return answer


def refused(name: str, words: str, kind: str = "Job") -> Json:
    about = {"kind": kind, "name": name, "uid": f"{name}-uid"}
    return {"type": "Warning", "reason": "FailedCreate", "message": words, "involvedObject": about}


DONE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
JOBS = [labelled("prio", "run"), labelled("prio-prepare", "run", **DONE), labelled("prio-supervisor", "run")]
PODS = [
    labelled("prio-prepare-x8zqp", "prepare", status={"phase": "Succeeded"}),
    labelled("prio-supervisor-x8zqp", "supervisor", status={"phase": "Running"}),
]
FILES = labelled("prio-files", "run", data={"config.yaml": CONFIG})
WORDS = 'Error creating: pods "prio-0-" is forbidden: no PriorityClass with name nope was found'


@pytest.mark.parametrize("maker", ["prio", "prio-node-0"])
def test_a_refused_pod_of_the_training_is_told_though_other_parts_have_pods(
    fake: FakeApi, api: Api, maker: str
) -> None:
    events = [refused("prio-prepare", "of the preparation"), refused("prio-2", "of another run"), refused(maker, WORDS)]
    fake.answers = [cluster(configmaps=[FILES], jobs=JOBS, pods=PODS, events=events)]
    status = kubernetes_status(read_view(api, "nlp", "prio"))
    assert (status.state, status.reason) == ("pending", f"its pods are refused: {WORDS}")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("/shared/runs/prio", "Write prio."),
        ("runs/prio/", "Write prio."),
        ("prio/logs", "Write prio."),
        ("prio,app=x", "Write a name of `list"),
        ("", "Write a name of `list"),
        ("Prio", "Write a name of `list"),
        ("../other", "Write other."),
    ],
)
def test_what_is_no_name_is_refused_before_it_is_part_of_a_selector(
    fake: FakeApi, api: Api, text: str, fix: str
) -> None:
    fake.answers = [cluster(configmaps=[FILES])]
    with pytest.raises(UsageError) as refusal_of:
        read_view(api, "nlp", text)
    (problem,) = refusal_of.value.problems
    assert (problem.where, problem.what) == (repr(text), "is not a run name") and problem.fix.startswith(fix)
    assert not any(text and text in asked.query.get("labelSelector", "") for asked in fake.asked)


def test_a_name_is_told_to_be_none_where_names_may_not_be_listed(fake: FakeApi, api: Api) -> None:
    fake.answers = [refusal(403, 'cannot list resource "configmaps"', "Forbidden")]
    with pytest.raises(UsageError, match=r"is not a run name\. Write r1\."):
        read_view(api, "nlp", "/shared/runs/r1")


NO_LIST = refusal(403, 'User "eve" cannot list resource "configmaps" in API group ""', "Forbidden")
NO_LOOK = refusal(403, 'User "eve" cannot get resource "namespaces" in API group ""', "Forbidden")
NOWHERE = refusal(404, 'namespaces "nope" not found', "NotFound", name="nope", kind="namespaces")


def in_namespace(namespace: Answer, lists: Answer | None = None) -> Callable[[Asked], Answer]:
    empty = cluster()
    return lambda asked: namespace if asked.path.endswith("/namespaces/nope") else lists or empty(asked)


@pytest.mark.parametrize("read", [lambda api: read_view(api, "nope", "prio"), lambda api: read_views(api, "nope")])
@pytest.mark.parametrize("lists", [None, NO_LIST])
def test_a_namespace_that_is_not_there_is_told(
    fake: FakeApi, api: Api, read: Callable[[Api], object], lists: Answer | None
) -> None:
    fake.answers = [in_namespace(NOWHERE, lists)]
    with pytest.raises(UsageError, match="--namespace: there is no namespace 'nope'"):
        read(api)


@pytest.mark.parametrize("read", [lambda api: read_view(api, "nope", "prio"), lambda api: read_views(api, "nope")])
def test_where_nothing_may_be_looked_at_the_namespace_is_asked_for(
    fake: FakeApi, api: Api, read: Callable[[Api], object]
) -> None:
    fake.answers = [in_namespace(NO_LOOK, NO_LIST)]
    with pytest.raises(Forbidden, match=r"may not list configmaps .*Is there a namespace 'nope' at all\?"):
        read(api)
    fake.answers = [in_namespace(Answer(200, {"metadata": {"name": "nope"}}), NO_LIST)]
    with pytest.raises(Forbidden) as told:
        read(api)
    assert "at all" not in str(told.value)


def test_a_namespace_without_runs(fake: FakeApi, api: Api) -> None:
    fake.answers = [in_namespace(NO_LOOK)]
    assert read_views(api, "nope") == []
    with pytest.raises(UsageError, match="no such run in namespace nope"):
        read_view(api, "nope", "prio")


def test_events_are_not_asked_for_where_all_is_well(fake: FakeApi, api: Api) -> None:
    worker = labelled("prio-0-x8zqp", "worker", status={"phase": "Running"})
    fake.answers = [cluster(configmaps=[FILES], jobs=JOBS, pods=[*PODS, worker])]
    read_view(api, "nlp", "prio")
    assert not [asked for asked in fake.asked if asked.path.endswith("/events")]
