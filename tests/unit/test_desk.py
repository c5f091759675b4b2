"""Where the supervisor publishes a run's state and takes people's requests: a ConfigMap of an API server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Answer, Asked, FakeApi, api_of, refusal
from kubernetes_scenarios import SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.rundir import RunDir, append_line, write_atomic, write_json
from fullft_cluster.runtime import desk as module
from fullft_cluster.runtime.desk import Desk
from fullft_cluster.runtime.kubernetes_target import Target

PATH = "/api/v1/namespaces/ml/configmaps/example-state"


class Map:
    """A ConfigMap behind a fake API server, that takes merge patches."""

    def __init__(self, server: FakeApi) -> None:
        self.server, self.data = server, dict[str, str]()
        self.broken: list[Answer] = []
        server.answers = [self]  # type: ignore[list-item]

    def __call__(self, asked: Asked) -> Answer:
        assert asked.path == PATH, "the Role allows no other"
        if self.broken:
            return self.broken.pop(0)
        if asked.method == "PATCH":
            assert asked.headers["Content-Type"] == "application/merge-patch+json"
            assert set(asked.body) == {"data"} and all(isinstance(value, str) for value in asked.body["data"].values())
            self.data |= asked.body["data"]
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "example-state"}}
        return Answer(200, {**body, "data": dict(self.data)} if self.data else body)

    def ask(self, action: str, name: str = "1") -> None:
        self.data["request"] = json.dumps({"id": name, "action": action, "time": 1.0})

    def patches(self) -> int:
        return sum(asked.method == "PATCH" for asked in self.server.asked)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeApi]:
    fake = FakeApi(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def state(server: FakeApi) -> Map:
    return Map(server)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "example")
    made.make()
    files = rendered(SCENARIOS["processes"])[0].files
    write_atomic(made.plan, files["plan.json"])
    write_atomic(made.config, files["config.yaml"])
    made.update_run(name="example", backend="kubernetes", state="running", attempt=1, attempt_started=1.0, restarts=0)
    return made


@pytest.fixture
def desk(run: RunDir, server: FakeApi, state: Map, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.01)
    target = Target(name="example", namespace="ml", kind="jobset")
    return Desk(run, target, api_of(server, monkeypatch, patience=0.0))


def test_what_status_shows_is_published_and_only_when_it_changes(desk: Desk, run: RunDir, state: Map) -> None:
    append_line(
        run.metrics, {"step": 3, "loss": 2.5, "attempt": 1, "time": 2.0, "total_steps": 50, "tokens_per_second": 9}
    )
    desk._turn()
    assert json.loads(state.data["run.json"]) == run.read_run()
    status = json.loads(state.data["status.json"])
    assert (status["name"], status["state"], status["step"], status["loss"]) == ("example", "running", 3, 2.5)
    assert state.data["attempts.jsonl"] == ""
    before = state.patches()
    for _ in range(3):
        desk._turn()
    assert state.patches() == before, "nothing is sent that is there"
    append_line(run.attempts, {"attempt": 1, "cause": "preempted"})
    desk._turn()
    assert [json.loads(line) for line in state.data["attempts.jsonl"].splitlines()] == [
        {"attempt": 1, "cause": "preempted"}
    ]


def test_a_cancel_is_heard_once(desk: Desk, run: RunDir, state: Map) -> None:
    state.ask("cancel")
    desk._turn()
    assert run.stop_reason() == "cancelled"
    assert state.data["honoured"] == "1"
    run.stop.unlink()  # the attempt that follows a resume takes it away
    desk._turn()
    assert run.stop_reason() is None, "the same request is not honoured twice"
    state.ask("cancel", "2")
    desk._turn()
    assert (run.stop_reason(), state.data["honoured"]) == ("cancelled", "2")


def test_a_supervisor_that_is_started_again_remembers_what_it_honoured(
    desk: Desk, run: RunDir, state: Map, server: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.ask("cancel")
    desk._turn()
    run.stop.unlink()
    again = Desk(run, desk.target, api_of(server, monkeypatch, patience=0.0))
    again._turn()
    assert run.stop_reason() is None


def test_a_resume_opens_a_run_that_has_ended(desk: Desk, run: RunDir, state: Map) -> None:
    state.ask("cancel")
    desk._turn()
    run.update_run(state="cancelled", excluded_nodes=["gpu-3"])
    state.ask("resume", "2")
    desk.resume_if_asked()
    assert (run.read_run()["state"], run.read_run()["excluded_nodes"]) == ("pending", [])
    assert run.stop_reason() is None
    run.update_run(state="failed")
    desk.resume_if_asked()
    assert run.read_run()["state"] == "failed", "once"
    desk._turn()
    assert state.data["honoured"] == "2"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"cancel"', "{}", '{"action": "cancel"}', '{"id": "7", "action": "x"}']
)
def test_a_request_that_is_none_is_left_alone(desk: Desk, run: RunDir, state: Map, text: str) -> None:
    state.data["request"] = text
    desk.resume_if_asked()
    desk._turn()
    assert run.stop_reason() is None
    assert run.read_run()["state"] == "running"
    assert state.data["honoured"] == ""


@pytest.mark.parametrize(
    "refused",
    [
        refusal(500, "etcd is away"),
        refusal(403, 'configmaps "example-state" is forbidden: User "x" cannot get resource', "Forbidden"),
        refusal(404, 'configmaps "example-state" not found', "NotFound"),
    ],
)
def test_a_server_that_refuses_is_said_and_asked_again(
    desk: Desk, run: RunDir, state: Map, caplog: pytest.LogCaptureFixture, refused: Answer
) -> None:
    state.ask("cancel")
    state.broken = [refused, refused]
    with caplog.at_level(logging.WARNING, "supervisor"):
        desk._turn()
    assert caplog.records, "what is wrong is in the supervisor's log"
    desk._turn()
    desk._turn()
    assert run.stop_reason() == "cancelled"
    assert "status.json" in state.data


def test_a_volume_that_hangs_is_said_and_tried_again(
    desk: Desk, run: RunDir, state: Map, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        module, "read_status", lambda run, live: (_ for _ in ()).throw(OSError(116, "Stale file handle"))
    )
    with caplog.at_level(logging.WARNING, "supervisor"):
        desk._turn()
    assert "Stale file handle" in caplog.text
    monkeypatch.undo()
    desk._turn()
    assert "status.json" in state.data


def test_the_last_state_is_published_when_it_closes(desk: Desk, run: RunDir, state: Map) -> None:
    desk.start()
    run.update_run(state="completed", reason="")
    desk.close()
    assert json.loads(state.data["run.json"])["state"] == "completed"
    assert json.loads(state.data["status.json"])["state"] == "completed"


def test_a_run_without_a_directory_has_a_state_too(desk: Desk, state: Map) -> None:
    desk.say("failed", "job example-prepare has failed")
    assert json.loads(state.data["run.json"]) == {
        "name": "example",
        "state": "failed",
        "reason": "job example-prepare has failed",
    }


def test_of_many_attempts_of_a_thousand_nodes_the_newest_are_published(desk: Desk, run: RunDir, state: Map) -> None:
    nodes, codes = [f"gpu-node-{number:04}.example.org" for number in range(1000)], [75] * 8000
    for attempt in range(1, 41):
        append_line(run.attempts, {"attempt": attempt, "cause": "preempted", "nodes": nodes, "exit_codes": codes})
    desk._turn()
    published = [json.loads(line)["attempt"] for line in state.data["attempts.jsonl"].splitlines()]
    assert published == list(range(published[0], 41)) and len(published) >= 5
    assert sum(len(text) for text in state.data.values()) < 2**20, "a ConfigMap holds no more"


def test_a_damaged_report_of_what_was_honoured_is_none(desk: Desk, run: RunDir, state: Map) -> None:
    write_json(run.path / "control" / "request.json", ["?"])
    state.ask("cancel")
    desk._turn()
    assert run.stop_reason() == "cancelled"
