"""A run in a cluster is resumed and deleted with nothing but its objects at hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi, api_of
from fake_cluster import Cluster
from kubernetes_scenarios import SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.backends import kubernetes_removal
from fullft_cluster.backends.kubernetes import KubernetesBackend
from fullft_cluster.backends.kubernetes_objects import documents, path_of
from fullft_cluster.cli.target import find_target
from fullft_cluster.errors import UsageError
from fullft_cluster.kubernetes_api import Json

JOBS = "/apis/batch/v1/namespaces/default/jobs"
STATE = "/api/v1/namespaces/default/configmaps/example-state"
CLAIM = "/api/v1/namespaces/default/persistentvolumeclaims/example-run"
PREPARE, SUPERVISOR, JOB = (f"{JOBS}/example{part}" for part in ("-prepare", "-supervisor", ""))


class Run:
    """A run of kind Job, as submitted; with what its supervisor published, and how its Jobs stand."""

    def __init__(self, cluster: Cluster, backend: KubernetesBackend) -> None:
        self.cluster, self.backend = cluster, backend
        self.said: list[str] = []

    def submit(self, scenario: str = "host-path") -> Run:
        result, _ = rendered(SCENARIOS[scenario] | {"output.runs_dir": "/shared/runs"}, "job")
        for number, obj in enumerate(documents(result.files[part] for part in result.parts)):
            made = copy.deepcopy(obj)
            made["metadata"]["uid"] = f"old-{number}"
            self.cluster.objects[path_of(obj)] = {**made, "status": {}}
        return self

    def publish(self, state: str, **run: Any) -> None:
        self.cluster.objects[STATE]["data"] = {"run.json": json.dumps({"state": state, **run})}

    def end(self, path: str, how: str) -> None:
        conditions = [{"type": how, "status": "True", "message": f"it is {how}"}]
        self.cluster.objects[path]["status"] = {"conditions": conditions}

    def resume(self) -> list[str]:
        self.backend.resume("example", self.said.append)
        return [words.removesuffix(" made") for words in self.said]

    def delete(self, name: str = "example", *, now: bool = False, storage: bool = False) -> list[str]:
        return self.backend.delete(name, now=now, storage=storage, say=self.said.append)

    def old(self, path: str) -> bool:
        uid: Json = self.cluster.objects[path]["metadata"]["uid"]
        return str(uid).startswith("old-")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    fake = FakeApi(tmp_path)
    monkeypatch.setattr(kubernetes_removal, "POLL_SECONDS", 0.0)
    yield Run(Cluster(fake, uids=True), KubernetesBackend(api_of(fake, monkeypatch), "default"))
    fake.close()


AGAIN = ["jobs.batch/example-supervisor", "services/example", "jobs.batch/example"]


def test_a_run_that_has_begun_goes_on_without_its_prepare_job(run: Run) -> None:
    run.submit().publish("failed", reason="the budget is spent", attempt=3)
    del run.cluster.objects[PREPARE]
    assert run.resume() == AGAIN
    assert PREPARE not in run.cluster.objects


def test_attempts_that_were_opened_are_a_beginning(run: Run) -> None:
    run.submit().publish("failed", reason="x")
    run.cluster.objects[STATE]["data"]["attempts.jsonl"] = '{"attempt": 1}\n'
    del run.cluster.objects[PREPARE]
    assert run.resume() == AGAIN


def test_a_run_that_was_cancelled_while_its_data_was_prepared_has_it_prepared(run: Run) -> None:
    run.submit()
    assert run.backend.cancel("example", now=False) == "deleted jobs.batch/example, which had not begun"
    assert not {PREPARE, JOB} & set(run.cluster.objects)
    assert run.resume() == ["jobs.batch/example-prepare", *AGAIN]


def test_a_preparation_that_failed_is_made_anew_and_all_after_it(run: Run) -> None:
    run.submit().end(PREPARE, "Failed")
    assert run.resume() == ["jobs.batch/example-prepare", *AGAIN]
    assert not any(run.old(path) for path in (PREPARE, SUPERVISOR, JOB))
    request = json.loads(run.cluster.objects[STATE]["data"]["request"])
    assert request["action"] == "resume"


def test_a_lost_supervisor_is_made_anew_beside_a_preparation_and_a_training_that_go_on(run: Run) -> None:
    run.submit()
    del run.cluster.objects[SUPERVISOR]
    assert run.resume() == AGAIN[:1]
    assert run.old(PREPARE) and run.old(JOB)


HERE = "--backend kubernetes --namespace default"
WITH_STORAGE = f"`fullft-cluster delete example {HERE} --storage`"


def test_a_claim_that_stays_is_named_and_is_deleted_by_the_command_that_was_told(run: Run) -> None:
    run.submit("own-claim").publish("completed", attempt=1)
    gone = run.delete()
    assert "persistentvolumeclaims/example-run" not in gone
    assert list(run.cluster.objects) == [CLAIM]
    told = run.said[-1]
    assert f"{WITH_STORAGE} deletes persistentvolumeclaims/example-run, with every checkpoint" in told
    with pytest.raises(UsageError, match="is deleted, but for persistentvolumeclaims/example-run") as refused:
        run.delete()
    assert WITH_STORAGE in refused.value.problems[0].fix
    assert list(run.cluster.objects) == [CLAIM]
    assert run.delete(storage=True) == ["persistentvolumeclaims/example-run"]
    assert run.cluster.objects == {}
    with pytest.raises(UsageError, match="no such run"):
        run.delete(storage=True)


def test_a_claim_that_goes_too_is_not_told_to_stay(run: Run) -> None:
    run.submit("own-claim").publish("completed", attempt=1)
    assert "persistentvolumeclaims/example-run" in run.delete(storage=True)
    assert run.cluster.objects == {}
    assert not any("--storage" in words or "stays" in words for words in run.said)


def test_what_is_left_without_its_config_maps_is_deleted(run: Run) -> None:
    run.submit()
    run.cluster.objects = {path: obj for path, obj in run.cluster.objects.items() if path.endswith("/roles/example")}
    assert run.delete() == ["roles.rbac.authorization.k8s.io/example"]
    assert run.cluster.objects == {}


def test_the_commands_that_are_told_lead_to_the_cluster_that_was_given(run: Run) -> None:
    run.submit("own-claim").publish("completed", attempt=1)
    run.backend.context = "east 1"
    run.delete()
    assert "delete example --backend kubernetes --context 'east 1' --namespace default --storage" in run.said[-1]


@pytest.mark.parametrize("heard", [False, True])
def test_a_run_that_was_told_to_stop_is_to_be_waited_for(run: Run, heard: bool) -> None:
    run.submit().publish("running", attempt=1)
    run.end(PREPARE, "Complete")
    run.backend.cancel("example", now=False)
    state = run.cluster.objects[STATE]["data"]
    state |= {"honoured": json.loads(state["request"])["id"]} if heard else {}
    with pytest.raises(UsageError) as refused:
        run.delete()
    wait = "It was asked to stop: wait until `status` says cancelled."
    assert refused.value.problems[0].fix == f"{wait} `delete --now` deletes it without a checkpoint."
    with pytest.raises(UsageError) as refused:
        run.resume()
    assert refused.value.problems[0].fix == wait
    assert JOB in run.cluster.objects


def test_a_run_that_nobody_told_to_stop_is_to_be_cancelled(run: Run) -> None:
    run.submit().publish("running", attempt=1)
    run.end(PREPARE, "Complete")
    with pytest.raises(UsageError) as refused:
        run.delete()
    cancel = f"`fullft-cluster cancel example {HERE}` makes a checkpoint first."
    assert refused.value.problems[0].fix == f"{cancel} `delete --now` deletes it without a checkpoint."
    assert run.delete(now=True) and run.cluster.objects == {}


@pytest.mark.parametrize("scenario", ["host-path", "own-claim"])
def test_a_delete_says_where_the_checkpoints_are(run: Run, scenario: str) -> None:
    run.submit(scenario).publish("completed", attempt=1)
    run.delete()
    stays = "the run directory /shared/runs/example stays on its volume, with every checkpoint and the export"
    assert stays in run.said


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, "--namespace default"),
        ({"namespace": "nlp"}, "--namespace nlp"),
        ({"context": "there"}, "--context there --namespace elsewhere"),
    ],
)
def test_a_run_that_was_resumed_is_followed_by_a_command_that_names_the_namespace(
    run: Run, given: dict[str, str], flags: str
) -> None:
    """As after submit; the current context may be another one when it is pasted."""
    target = find_target("example", None, {"backend": "kubernetes", "context": None, "namespace": None} | given)
    assert target.status_command == f"fullft-cluster status example --backend kubernetes {flags}"
