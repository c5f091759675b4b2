"""Requests to an API server that is away, busy or says no: what is sent again, what is not, and what people hear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Answer, FakeApi, Lost, api_of, refusal

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.kubernetes_api import (
    Api,
    ApiError,
    Conflict,
    Forbidden,
    GroupNotFound,
    Invalid,
    NotFound,
    Unreachable,
    object_path,
)
from fullft_cluster.kubernetes_api.failures import NamespaceNotFound, Permission, Refused, ServerFault, grants
from fullft_cluster.kubernetes_api.kinds import place_of

PATH = object_path("ConfigMap", "ml", "x")
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "ml"}, "data": {"a": "b"}}
OK = Answer(200, MAP)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path)
    yield server
    server.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Api:
    return api_of(fake, monkeypatch, said)


@pytest.mark.parametrize(
    "trouble",
    [
        Lost(),
        Lost(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        refusal(429, "too many"),
        refusal(500, "etcd is gone"),
        Answer(502, b"<html>"),
        Answer(503, b""),
        refusal(504, "slow"),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_what_passes_is_waited_for(fake: FakeApi, api: Api, trouble: Any, times: int, said: list[str]) -> None:
    fake.answers = [*[trouble] * times, OK]
    assert api.apply(MAP)["data"] == {"a": "b"}
    assert len(fake.asked) == times + 1
    assert [one.body for one in fake.asked] == [MAP] * (times + 1)
    # A hiccup is not worth a word; an outage is told once, and its end.
    assert len(said) == (0 if times == 1 else 2)
    assert not said or ("trying again" in said[0] and said[1].endswith("answers again"))


def test_retry_after_is_obeyed(fake: FakeApi, api: Api) -> None:
    slept: list[float] = []
    api.sleep = slept.append
    fake.answers = [Answer(429, {"message": "busy"}, (("Retry-After", "7"),)), OK]
    api.get(PATH)
    assert slept == [7.0]


def test_pauses_grow_and_stay_within_bounds(fake: FakeApi, api: Api) -> None:
    slept: list[float] = []
    api.sleep = slept.append
    fake.answers = [*[refusal(503, "away")] * 9, OK]
    api.get(PATH)
    assert slept[0] <= 0.25 and all(0.1 <= one <= 5.0 for one in slept) and max(slept) > 2.0


def test_patience_ends_with_the_reason(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(fake, monkeypatch, patience=0.0)
    fake.answers = [refusal(503, "etcd is gone")]
    with pytest.raises(ServerFault, match="answers 503: etcd is gone") as caught:
        api.get(PATH)
    assert caught.value.exit_code == 4
    assert len(fake.asked) == 1


def test_nobody_listens(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(fake, monkeypatch, patience=0.0)
    fake.close()
    with pytest.raises(Unreachable, match=r"does not answer: .*Connection refused") as caught:
        api.get(PATH)
    assert caught.value.exit_code == 4


def test_a_server_that_is_back_may_deny_for_a_moment_what_it_allows(fake: FakeApi, api: Api) -> None:
    """It answers before it has read its roles and its CRDs (seen at each restart of a real one)."""
    denied = refusal(403, 'User "eve" cannot patch resource "configmaps" in API group ""', "Forbidden")
    fake.answers = [Lost(), denied, Answer(404, b"404 page not found"), OK]
    assert api.apply(MAP) == MAP
    fake.answers = [denied]
    api._settled_at = 0.0
    with pytest.raises(Forbidden):
        api.apply(MAP)
    assert len(fake.asked) == 5


def test_what_would_be_done_twice_is_not_sent_again_once_it_may_have_been_done(fake: FakeApi, api: Api) -> None:
    fake.answers = [Lost(), OK]
    with pytest.raises(Unreachable):
        api.json_patch(PATH, [{"op": "add", "path": "/data/list/-", "value": "x"}])
    assert len(fake.asked) == 1
    fake.answers = [refusal(429, "busy"), OK]  # it was not carried out
    api.json_patch(PATH, [{"op": "add", "path": "/data/list/-", "value": "x"}])
    fake.answers = [Lost(), OK]
    api.json_patch(PATH, [{"op": "replace", "path": "/data/a", "value": "x"}])


def test_a_delete_says_all_in_its_body_and_may_be_repeated(fake: FakeApi, api: Api) -> None:
    fake.answers = [Lost(), refusal(404, "gone", "NotFound", name="x", kind="configmaps")]
    assert api.delete(PATH, grace_seconds=0, propagation="Foreground", uid="u") is False
    assert fake.asked[-1].query == {}
    assert fake.asked[-1].body["gracePeriodSeconds"] == 0
    assert fake.asked[-1].body["propagationPolicy"] == "Foreground"
    assert fake.asked[-1].body["preconditions"] == {"uid": "u"}


def test_apply_is_strict_and_forces_nothing(fake: FakeApi, api: Api) -> None:
    fake.answers = [OK]
    api.apply(MAP, dry_run=True)
    (asked,) = fake.asked
    assert (asked.method, asked.path) == ("PATCH", PATH)
    assert asked.headers["Content-Type"] == "application/apply-patch+yaml"
    wanted = {"fieldManager": "fullft-cluster", "fieldValidation": "Strict", "force": "false", "dryRun": "All"}
    assert asked.query == wanted


def test_a_change_that_collides_is_made_again_but_a_field_of_others_is_not_taken(fake: FakeApi, api: Api) -> None:
    changed = refusal(409, "Operation cannot be fulfilled: the object has been modified; please apply", "Conflict")
    fake.answers = [changed, changed, OK]
    api.merge_patch(PATH, {"data": {}})
    assert len(fake.asked) == 3
    owned = 'Apply failed with 1 conflict: conflict with "kubectl": .data.a'
    fake.answers = [refusal(409, owned, "Conflict", causes=[{"reason": "FieldManagerConflict"}])]
    with pytest.raises(Conflict, match=r'conflict with "kubectl".*undo its change'):
        api.apply(MAP)
    assert len(fake.asked) == 4


def test_a_list_whose_pages_ran_out_of_date_is_read_anew(fake: FakeApi, api: Api) -> None:
    page = {"kind": "ConfigMapList", "apiVersion": "v1"}
    fake.answers = [
        Answer(200, {**page, "metadata": {"continue": "2"}, "items": [{"metadata": {"name": "a"}}]}),
        refusal(410, "The provided continue parameter is too old", "Expired"),
        Answer(200, {**page, "metadata": {"continue": "2"}, "items": [{"metadata": {"name": "a"}}]}),
        Answer(200, {**page, "metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "b"}}]}),
    ]
    items, version = api.list_version(object_path("ConfigMap", "ml"), "a=b")
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert (items[0]["kind"], version) == ("ConfigMap", "9")
    assert [one.query.get("continue") for one in fake.asked] == [None, "2", None, "2"]
    assert {one.query["labelSelector"] for one in fake.asked} == {"a=b"}


CANNOT = 'pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "ml"'
ACCOUNT = (
    'pytorchjobs.kubeflow.org "x" is forbidden: User "system:serviceaccount:ml:ci" cannot patch resource '
    '"pytorchjobs" in API group "kubeflow.org" in the namespace "ml"'
)


@pytest.mark.parametrize(
    ("path", "method", "answer", "kind", "words"),
    [
        (
            object_path("Pod", "ml"),
            "GET",
            refusal(403, CANNOT, "Forbidden"),
            Forbidden,
            [
                "you may not list pods in namespace ml (you are eve)",
                "kubectl create role fullft-cluster --verb=list --resource=pods -n ml",
                "kubectl create rolebinding fullft-cluster --role=fullft-cluster --user=eve -n ml",
            ],
        ),
        (
            object_path("PyTorchJob", "ml", "x"),
            "PATCH",
            refusal(403, ACCOUNT, "Forbidden"),
            Forbidden,
            ["may not patch pytorchjobs.kubeflow.org", "--serviceaccount=ml:ci -n ml"],
        ),
        (object_path("Node", None), "GET", refusal(403, "no"), Forbidden, ["create clusterrole", "--resource=nodes"]),
        (
            object_path("Pod", "ml", "x", "log"),
            "GET",
            refusal(403, CANNOT.replace('"pods"', '"pods/log"').replace("list", "get"), "Forbidden"),
            Forbidden,
            ["may not get pods/log", "--resource=pods/log"],
        ),
        (
            object_path("Job", "ml", "x"),
            "PATCH",
            refusal(
                403, 'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1', "Forbidden"
            ),
            Refused,
            ["exceeded quota: small", "--max-gpus"],
        ),
        (
            object_path("PyTorchJob", "ml", "x"),
            "PATCH",
            Answer(404, b"404 page not found\n"),
            GroupNotFound,
            ["the Kubeflow training-operator is not installed", "kubectl apply --server-side -k", "ref=v1.9.3"],
        ),
        (object_path("JobSet", "ml"), "GET", Answer(404, b"404"), GroupNotFound, ["JobSet is not installed", "v0.12"]),
        (object_path("TrainJob", "ml"), "GET", Answer(404, b"404"), GroupNotFound, ["ref=v2.3.0"]),
        (object_path("LocalQueue", "ml"), "GET", Answer(404, b"404"), GroupNotFound, ["Kueue is not installed"]),
        (
            PATH,
            "PATCH",
            refusal(404, 'namespaces "ml" not found', "NotFound", name="ml", kind="namespaces"),
            NamespaceNotFound,
            ["there is no namespace 'ml'", "kubectl create namespace ml"],
        ),
        (
            PATH,
            "GET",
            refusal(404, 'configmaps "x" not found', "NotFound", name="x", kind="configmaps"),
            NotFound,
            ["configmaps/x: is not there in namespace ml"],
        ),
        (PATH, "GET", refusal(401, "Unauthorized"), ApiError, ["does not know you", "--context"]),
        (PATH, "PATCH", refusal(422, "spec.x: Invalid value", "Invalid"), Invalid, ["refuses it: spec.x"]),
        (
            PATH,
            "PATCH",
            refusal(400, 'strict decoding error: unknown field "spec.x"', "BadRequest"),
            Invalid,
            ["unknown field", "another version of this API"],
        ),
        (
            PATH,
            "PATCH",
            refusal(500, "failed to create typed patch object: .x: field not declared in schema"),
            Invalid,
            ["field not declared"],
        ),
        (PATH, "GET", Answer(301, b"<html>moved"), ApiError, ["answers 301", "Is that an API server?"]),
    ],
)
def test_refusals_say_what_to_do(
    fake: FakeApi, api: Api, path: str, method: str, answer: Answer, kind: type[ApiError], words: list[str]
) -> None:
    fake.answers = [answer]
    with pytest.raises(kind) as caught:
        api.request(method, path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 4
    assert len(fake.asked) == 1  # not asked again
    assert "secret-token" not in str(caught.value)


def test_an_operators_webhook_that_is_away_is_named(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(fake, monkeypatch, patience=0.0)
    words = 'Internal error occurred: failed calling webhook "validator.kubeflow.org": connection refused'
    fake.answers = [refusal(500, words, "InternalError")]
    with pytest.raises(ServerFault, match=r"webhook validator\.kubeflow\.org does not answer: look at its pods"):
        api.apply(MAP)


def test_a_page_of_a_proxy_is_no_answer(fake: FakeApi, api: Api) -> None:
    fake.answers = [Answer(200, b"<html>log in</html>")]
    with pytest.raises(ApiError, match="something else than JSON"):
        api.get(PATH)


def test_warnings_of_the_server_are_passed_on_once(fake: FakeApi, api: Api, said: list[str]) -> None:
    fake.answers = [Answer(200, MAP, (("Warning", '299 - "would violate PodSecurity"'),))]
    api.get(PATH)
    api.get(PATH)
    assert said == ["kubernetes: warning: would violate PodSecurity"]


def test_of_a_secret_only_the_metadata_is_asked_for(fake: FakeApi, api: Api) -> None:
    fake.answers = [Answer(200, {"kind": "PartialObjectMetadata"})]
    assert api.exists(object_path("Secret", "ml", "hub"))
    assert "PartialObjectMetadata" in fake.asked[0].headers["Accept"]


def test_grants_are_exact() -> None:
    missing = [
        Permission("patch", "configmaps"),
        Permission("patch", "pytorchjobs", "kubeflow.org"),
        Permission("get", "pods"),
    ]
    first, second, third, fourth = grants(missing, "ml", "eve").split(" && ")
    assert first == (
        "kubectl create role fullft-cluster-1 --verb=patch --resource=configmaps,pytorchjobs.kubeflow.org -n ml"
    )
    assert "rolebinding fullft-cluster-1 --role=fullft-cluster-1 --user=eve -n ml" in second
    assert "--verb=get --resource=pods -n ml" in third
    assert "fullft-cluster-2" in fourth


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/api/v1/namespaces/ml", ("", None, "namespaces", "ml")),
        ("/api/v1/namespaces/ml/pods", ("", "ml", "pods", None)),
        ("/api/v1/namespaces/ml/pods/x/log", ("", "ml", "pods/log", "x")),
        ("/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs/x", ("kubeflow.org", "ml", "pytorchjobs", "x")),
        ("/api/v1/nodes/n", ("", None, "nodes", "n")),
        ("/version", ("", None, "", None)),
    ],
)
def test_paths_are_read_back(path: str, place: tuple[Any, ...]) -> None:
    assert tuple(place_of(path)) == place
