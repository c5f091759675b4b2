"""The status of a run in a cluster: what its supervisor published, held against what is there now."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from kubernetes_scenarios import SCENARIOS, rendered

from fullft_cluster.backends.kubernetes_status import kubernetes_status
from fullft_cluster.backends.kubernetes_view import View
from fullft_cluster.status import Status

NOW = 1_800_000_000.0
FILES = rendered(SCENARIOS["processes"] | {"output.runs_dir": "/shared/runs"})[0].files
Parts = dict[str, Any]


def job(kind: str, name: str, end: str | None = None, **spec: Any) -> Parts:
    conditions = [{"type": end, "status": "True", "message": f"{kind} {end}"}] if end else []
    metadata = {"name": name, "uid": f"{name}-uid", "creationTimestamp": "2026-01-05T10:00:00Z"}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": conditions}}


def pod(part: str, name: str, phase: str = "Running", **status: Any) -> Parts:
    labels = {"app.kubernetes.io/component": part}
    spec = {"nodeName": f"node-of-{name}", "containers": []}
    metadata = {"name": f"example-{name}", "uid": f"{name}-uid", "labels": labels}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, **status}}


def published(state: str, **changes: Any) -> dict[str, str]:
    """What a supervisor wrote into NAME-state."""
    empty = {field.name: None for field in msgspec.structs.fields(Status)}
    values = {
        "name": "inside",
        "run_dir": "/shared/runs/example",
        "backend": "kubernetes",
        "state": state,
        "reason": "",
    }
    counts = {"attempt": 1, "restarts": 0, "nodes": [], "attempts": []}
    return {"status.json": json.dumps(empty | values | counts | changes), "run.json": json.dumps({"state": state})}


def view(**parts: Any) -> View:
    """A run whose data is prepared and whose four workers run, as changed."""
    usual: Parts = {
        "files": FILES,
        "prepare": job("Job", "example-prepare", "Complete"),
        "supervisor": job("Job", "example-supervisor"),
        "training": job("PyTorchJob", "example"),
        "pods": [pod("supervisor", "supervisor-x8zqp"), *(pod("worker", f"worker-{n}") for n in range(4))],
    }
    return View("example", "nlp", **(usual | parts))


def told(**parts: Any) -> tuple[str, str]:
    status = kubernetes_status(view(**parts), NOW)
    return status.state, status.reason


LACKS = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes: 3 Insufficient cpu",
}


def test_a_run_that_runs_has_the_figures_of_its_supervisor_and_the_nodes_of_its_pods() -> None:
    state = published("running", step=7, total_steps=9, loss=2.5, heartbeat_age_seconds=1.0, tokens_per_second=10.0)
    status = kubernetes_status(view(state=state, state_time=NOW - 4), NOW)
    assert (status.state, status.reason, status.step, status.loss) == ("running", "", 7, 2.5)
    assert status.nodes == [f"node-of-worker-{n}" for n in range(4)]
    assert status.heartbeat_age_seconds == 5.0  # grown since it was published
    assert (status.name, status.job_id, status.backend) == ("example", "pytorchjob/example", "kubernetes")


def test_before_the_supervisor_has_said_anything_the_plan_is_known() -> None:
    status = kubernetes_status(view(prepare=job("Job", "example-prepare"), pods=[pod("prepare", "prepare-x8zqp")]), NOW)
    assert (status.state, status.reason) == ("preparing", "data preparation")
    assert (status.total_steps, status.run_dir) == (50, "/shared/runs/example")


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_an_end_that_the_supervisor_published_is_the_end(state: str) -> None:
    assert told(state=published(state, reason="why"), training=None, pods=[]) == (state, "why")


def test_a_preparation_that_failed_says_its_last_words() -> None:
    end = {"terminated": {"exitCode": 2, "reason": "Error", "message": "error: train.jsonl:3: no text"}}
    failed = pod("prepare", "prepare-x8zqp", "Failed", containerStatuses=[{"name": "prepare", "state": end}])
    state, reason = told(prepare=job("Job", "example-prepare", "Failed"), pods=[failed])
    assert state == "failed"
    assert "data preparation: prepare: prepare ended with exit code 2: error: train.jsonl:3: no text" in reason
    assert "logs example --backend kubernetes" in reason


def test_several_errors_of_a_preparation_are_one_line_with_the_first() -> None:
    errors = [f"data preparation: /shared/train.jsonl:{line}: no text. Write one." for line in (3, 5, 9)]
    assert told(state=published("failed", reason="\n".join(errors)), pods=[]) == (
        "failed",
        f"{errors[0]} (and 2 more); `logs example --backend kubernetes` shows all",
    )
    assert told(state=published("failed", reason=errors[0] + "\n"), pods=[]) == ("failed", errors[0])
    message = "\n".join(["Traceback no", *(f"error: train.jsonl:{line}: no text" for line in (3, 5, 5))])
    end = {"terminated": {"exitCode": 2, "reason": "Error", "message": message}}
    failed = pod("prepare", "prepare-x8zqp", "Failed", containerStatuses=[{"name": "prepare", "state": end}])
    _, reason = told(prepare=job("Job", "example-prepare", "Failed"), pods=[failed])
    assert "prepare ended with exit code 2: error: train.jsonl:3: no text (and 1 more). `logs" in reason


def test_pods_that_wait_say_what_for_those_alike_once() -> None:
    waiting = [pod("worker", f"worker-{n}", "Pending", conditions=[LACKS]) for n in range(4)]
    state, reason = told(pods=[pod("supervisor", "supervisor-x8zqp"), *waiting])
    assert state == "pending"
    assert reason.startswith(
        "worker-0, worker-1, worker-2 and 1 more: cannot be scheduled: 0/3 nodes: 3 Insufficient cpu"
    )
    assert reason.count("Insufficient") == 1
    again, reason = told(state=published("requeued", reason="preempted"), pods=waiting[:1])
    assert again == "requeued" and reason.startswith("preempted; worker-0: cannot be scheduled")


def test_pods_that_a_quota_refuses() -> None:
    words = 'Error creating: pods "example-worker-0" is forbidden: exceeded quota: small, requested: pods=1'
    event = {"reason": "FailedCreatePod", "message": words, "involvedObject": {"kind": "PyTorchJob", "name": "example"}}
    assert told(pods=[pod("supervisor", "supervisor-x8zqp")], warnings=[event]) == (
        "pending",
        "its pods are refused: exceeded quota: small, requested: pods=1",
    )


def test_kueue_holds_it_back() -> None:
    held = job("PyTorchJob", "example", runPolicy={"suspend": True})
    held["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "research"}
    words = "insufficient unused quota for nvidia.com/gpu in flavor a100, 8 more needed"
    condition = {"type": "QuotaReserved", "status": "False", "message": words}
    workload = {"metadata": {"ownerReferences": [{"uid": "example-uid"}]}, "status": {"conditions": [condition]}}
    assert told(training=held, pods=[], workloads=[workload]) == ("pending", f"queued by Kueue in research: {words}")
    preparing = job("Job", "example-prepare", suspend=True)
    preparing["metadata"]["labels"] = held["metadata"]["labels"]
    state, reason = told(prepare=preparing, training=held, pods=[])
    assert (state, reason) == ("pending", "data preparation queued by Kueue in research")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"supervisor": None}, "it has no supervisor"),
        ({"supervisor": job("Job", "example-supervisor", "Failed")}, "its supervisor has failed (Job Failed)"),
        ({}, "its supervisor has no pod"),
    ],
)
def test_a_run_without_a_supervisor_says_so_while_it_runs(parts: Parts, words: str) -> None:
    workers = [pod("worker", f"worker-{n}") for n in range(4)]
    state, reason = told(state=published("running"), pods=workers, **parts)
    assert state == "running" and words in reason


def request(action: str, number: str = "1", honoured: str | None = None, **more: str) -> dict[str, str]:
    run = {"honoured": honoured or "", "run.json": json.dumps({"state": "running"})}
    return {"request": json.dumps({"id": number, "action": action}), **run, **more}


def test_what_was_asked_for_and_not_yet_answered() -> None:
    assert told(state=published("running") | request("cancel")) == ("running", "asked to stop after a checkpoint")
    stopping = "stopping after a checkpoint: cancelled"
    assert told(state=published("running", reason=stopping) | request("cancel")) == ("running", stopping)
    assert told(state=published("running") | request("cancel", honoured="1"))[1] == ""
    assert told(state=request("cancel"), training=None, pods=[]) == ("cancelled", "cancelled by the user")
    ended = published("failed", reason="oom")
    state, reason = told(state=ended | request("resume"), pods=[])
    assert (state, reason) == ("requeued", "resumed; its supervisor has no pod")
    assert told(state=ended | request("resume", honoured="1"), pods=[]) == ("failed", "oom")


def test_pods_without_an_attempt_do_not_run_yet() -> None:
    state, reason = told(state=published("preparing", attempt=0))
    assert state == "pending" and "its first attempt soon does" in reason
    assert told() == (state, reason)
    assert told(state=published("running", attempt=1)) == ("running", "")


def test_a_training_object_that_is_gone_or_has_ended_without_a_word_of_the_supervisor() -> None:
    state, reason = told(state=published("running"), training=None)
    assert state == "failed" and "its training object is gone" in reason and "`resume`" in reason
    failed = job("PyTorchJob", "example", "Failed")
    assert told(state=published("running"), training=failed)[0] == "running"  # the supervisor settles it
    state, reason = told(state=published("running"), training=failed, pods=[])
    assert state == "failed" and "the PyTorchJob has failed: PyTorchJob Failed" in reason


def test_attempts_are_shown_before_a_status_was_published() -> None:
    lines = '{"attempt": 1, "cause": "oom"}\n{"torn'
    assert kubernetes_status(view(state={"attempts.jsonl": lines}), NOW).attempts == [{"attempt": 1, "cause": "oom"}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": 5}', "null"])
def test_a_state_that_is_no_state_is_done_without(text: str) -> None:
    broken = dict.fromkeys(("status.json", "run.json", "request", "attempts.jsonl"), text)
    assert kubernetes_status(view(state=broken), NOW).name == "example"
    assert kubernetes_status(view(files={"config.yaml": text, "plan.json": text}), NOW).run_dir == ""
