"""All objects of a run are made, each once, or none that is not named: with lost answers, refusals and interrupts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Answer, Asked, FakeApi, Lost, api_of, refusal
from fake_cluster import Cluster, Fault
from kubernetes_scenarios import KINDS, SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.backends.kubernetes_objects import documents, path_of, words_of
from fullft_cluster.backends.kubernetes_submit import SUBMISSION, make_all
from fullft_cluster.errors import FullftError, SchedulerError, UsageError
from fullft_cluster.kubernetes_api import Api, Json
from fullft_cluster.kubernetes_api.kinds import kind_of


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path)
    yield server
    server.close()


@pytest.fixture
def cluster(fake: FakeApi) -> Cluster:
    return Cluster(fake)


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    return api_of(fake, monkeypatch)


def objects(kind: str = "pytorchjob") -> list[Json]:
    result, _ = rendered(SCENARIOS["own-claim"], kind)
    return documents(result.files[part] for part in result.parts)


def once(what: Answer | Lost, when: Callable[[Asked], bool]) -> Fault:
    """A fault that each request which is alike meets once."""
    met: set[tuple[str, str]] = set()

    def fault(asked: Asked) -> Answer | Lost | None:
        key = asked.method, asked.path
        if not when(asked) or key in met:
            return None
        met.add(key)
        return what

    return fault


def lost(asked: Asked) -> bool:
    return asked.method in ("POST", "PATCH")


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_made_in_their_order_as_rendered(cluster: Cluster, api: Api, kind: str) -> None:
    wanted, said = objects(kind), list[str]()
    make_all(api, wanted, "example", said.append)
    assert set(cluster.objects) == {path_of(obj) for obj in wanted}
    for obj in wanted:
        there = copy.deepcopy(cluster.objects[path_of(obj)])
        there["metadata"].pop("annotations", None) if obj["metadata"]["name"] == "example-state" else None
        assert there == obj  # the bytes that a dry run prints
    # The state first: whoever makes it has the name. The rest as listed.
    assert cluster.made[0].endswith("/configmaps/example-state")
    rest = [path_of(obj) for obj in wanted if obj["metadata"]["name"] != "example-state"]
    assert cluster.made[1:] == rest
    assert said == [f"{words_of(obj)} made" for obj in wanted]


@pytest.mark.parametrize("what", [Lost(), refusal(503, "restarting"), refusal(429, "busy")])
def test_each_answer_that_is_lost_is_asked_for_again_and_nothing_is_made_twice(
    cluster: Cluster, api: Api, what: Answer | Lost
) -> None:
    cluster.after = once(what, lost)  # it was carried out, and nobody heard of it
    make_all(api, objects(), "example", lambda text: None)
    assert len(cluster.made) == len(set(cluster.made)) == len(objects())


@pytest.mark.parametrize("number", [0, 1, 4, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_takes_everything_else_back(cluster: Cluster, api: Api, kind: str, number: int) -> None:
    wanted = objects(kind)
    refused = path_of(wanted[number])
    words = "admission webhook denied the request: too big"
    cluster.before = lambda asked: (
        refusal(403, words, "Forbidden") if asked.method == "PATCH" and asked.path == refused else None
    )
    with pytest.raises(SchedulerError, match="too big"):
        make_all(api, wanted, "example", lambda text: None)
    assert cluster.objects == {}


def test_a_train_job_waits_until_its_webhook_has_seen_the_runtime(cluster: Cluster, api: Api) -> None:
    """The runtime was made a moment ago, and the webhook asks a cache."""
    wanted = objects("trainjob")
    late = refusal(403, "admission webhook denied the request: TrainingRuntime example not found", "Forbidden")
    cluster.before = once(late, lambda asked: asked.method == "PATCH" and "/trainjobs/" in asked.path)
    make_all(api, wanted, "example", lambda text: None)
    assert set(cluster.objects) == {path_of(obj) for obj in wanted}


def test_what_cannot_be_taken_back_is_named_with_the_command(cluster: Cluster, api: Api) -> None:
    wanted = objects()

    def before(asked: Asked) -> Answer | None:
        if asked.method == "PATCH" and asked.path.endswith("/pytorchjobs/example"):
            return refusal(422, "spec: Invalid value", "Invalid")
        if asked.method == "DELETE" and asked.path.endswith("/roles/example"):
            return refusal(403, 'User "eve" cannot delete resource "roles" in API group "x"', "Forbidden")
        return None

    cluster.before = before
    with pytest.raises(SchedulerError) as caught:
        make_all(api, wanted, "example", lambda text: None)
    first, second = caught.value.problems
    assert "spec: Invalid value" in first.what
    assert second.what == "these may still be there: roles.rbac.authorization.k8s.io/example"
    assert "kubectl delete -n default roles.rbac.authorization.k8s.io/example" in second.fix
    assert list(cluster.objects) == [path for path in cluster.objects if path.endswith("/roles/example")]


def test_a_server_that_goes_away_for_good_has_all_that_may_be_there_named(
    cluster: Cluster, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = api_of(fake, monkeypatch, patience=0.0)
    gone: list[bool] = []

    def before(asked: Asked) -> Answer | Lost | None:
        if asked.path.endswith("/example-prepare"):
            gone.append(True)
        return Lost() if gone else None

    cluster.before = before
    with pytest.raises(SchedulerError) as caught:
        make_all(api, objects(), "example", lambda text: None)
    named = set(caught.value.problems[-1].what.partition(": ")[2].split())
    there = {f"{kind_of(obj).resource}/{obj['metadata']['name']}" for obj in cluster.objects.values()}
    assert named == there | {"jobs.batch/example-prepare"}  # of which nobody knows whether it was made
    assert len(fake.asked) < 2 * len(objects())  # it does not wait for the server again for each of them


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_takes_everything_back(cluster: Cluster, api: Api, error: type[BaseException]) -> None:
    def say(text: str) -> None:
        if text == "jobs.batch/example-prepare made":
            raise error

    with pytest.raises(error):
        make_all(api, objects(), "example", say)
    assert cluster.made and cluster.objects == {}


def test_of_two_submits_at_once_one_goes_on_and_the_other_touches_nothing(cluster: Cluster, api: Api) -> None:
    make_all(api, objects(), "example", lambda text: None)
    before = copy.deepcopy(cluster.objects)
    with pytest.raises(UsageError, match="--name: is taken: another submit made configmaps/example-state"):
        make_all(api, objects("jobset"), "example", lambda text: None)
    assert cluster.objects == before


def test_a_create_whose_answer_was_lost_knows_its_own(cluster: Cluster, api: Api) -> None:
    cluster.after = once(Lost(), lambda asked: asked.method == "POST")
    make_all(api, objects(), "example", lambda text: None)
    state = next(obj for path, obj in cluster.objects.items() if path.endswith("example-state"))
    assert state["metadata"]["annotations"][SUBMISSION]


def test_a_create_that_fails_leaves_nothing_and_removes_nothing_of_others(cluster: Cluster, api: Api) -> None:
    cluster.before = lambda asked: refusal(422, "no", "Invalid") if asked.method == "POST" else None
    theirs: dict[str, Any] = {"metadata": {"name": "example-state", "annotations": {SUBMISSION: "other"}}}
    path = next(path_of(obj) for obj in objects() if obj["metadata"]["name"] == "example-state")
    cluster.objects[path] = theirs
    with pytest.raises(FullftError, match="no"):
        make_all(api, objects(), "example", lambda text: None)
    assert cluster.objects == {path: theirs}
