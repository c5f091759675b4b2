"""What a submit looks at before it makes anything, against an API server that allows and refuses as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Answer, Asked, FakeApi, api_of, refusal
from kubernetes_scenarios import SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.backends.kubernetes_objects import documents, words_of
from fullft_cluster.backends.kubernetes_preflight import judged_by_server, not_judged, preflight
from fullft_cluster.config import KubernetesConfig
from fullft_cluster.kubernetes_api import Api


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path)
    yield server
    server.close()


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    return api_of(fake, monkeypatch)


class Server:
    """An administrator's server, but for what is refused: the answer for paths that end so."""

    def __init__(self, **refused: Answer) -> None:
        self.refused = refused

    def __call__(self, asked: Asked) -> Answer:
        for end, answer in self.refused.items():
            if asked.path.endswith(f"/{end}"):
                return answer
        body: dict[str, Any] = {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}
        return Answer(200, body | {"status": {"allowed": True}})


FORBIDDEN = refusal(
    403, 'User "eve" cannot get resource "priorityclasses" in API group "scheduling.k8s.io"', "Forbidden"
)
MISSING = refusal(404, "not found", "NotFound", name="nope", kind="priorityclasses")


def test_a_priority_class_is_looked_for(fake: FakeApi, api: Api) -> None:
    fake.answers = [Server(nope=MISSING)]
    found = preflight(api, [], KubernetesConfig(priority_class="nope", host_path="/shared"), 2)
    (problem,) = found.usage
    assert str(problem).startswith("kubernetes.priority_class: there is no PriorityClass 'nope'")


def test_what_may_not_be_looked_at_is_named(fake: FakeApi, api: Api) -> None:
    fake.answers = [Server(nope=FORBIDDEN, hub=FORBIDDEN)]
    own = KubernetesConfig(priority_class="nope", hf_token_secret="hub", host_path="/shared")
    found = preflight(api, [], own, 2)
    assert found.usage == []
    assert found.notes == [
        "not checked, since you may not look at it: Secret 'hub' (kubernetes.hf_token_secret), "
        "PriorityClass 'nope' (kubernetes.priority_class)"
    ]


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [("job", ["Role example"]), ("trainjob", ["Role example", "TrainingRuntime example"])],
)
def test_what_a_dry_run_cannot_judge_because_of_the_order_is_told_apart(
    fake: FakeApi, api: Api, kind: str, lacking: list[str]
) -> None:
    result, _ = rendered(SCENARIOS["processes"], kind)
    objects = documents(result.files[part] for part in result.parts)
    role = refusal(404, "not found", "NotFound", name="example", kind="roles")
    fake.answers = [lambda asked: role if "/rolebindings/" in asked.path else Answer(200, asked.body)]
    judged = judged_by_server(api, objects)
    told = list(not_judged(objects, judged))
    assert [one.partition(" before its ")[2] for one in told] == [f"{one} is there" for one in lacking]
    assert len(judged) == len(objects) - len(lacking)
    assert {words_of(one) for one in judged}.isdisjoint(one.partition(" ")[0] for one in told)
    fake.answers = [lambda asked: Answer(200, asked.body)]
    assert not list(not_judged(objects[:4], judged_by_server(api, objects[:4])))
