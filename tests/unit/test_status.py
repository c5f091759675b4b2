"""What a run is doing, for every combination of its own record and the scheduler's word."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fullft_cluster.backends.local import LocalBackend, supervisor
from fullft_cluster.errors import UsageError
from fullft_cluster.rundir import RunDir, append_line, write_json
from fullft_cluster.slurm_cli import JobState
from fullft_cluster.status import read_status


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.make()
    run.update_run(backend="slurm", state="pending", job_id="42", prepare_job_id="41", attempt=0)
    return run


def job(state: str, reason: str = "") -> dict[str, JobState]:
    return {"42": JobState(state=state, reason=reason)}


@pytest.mark.parametrize(
    ("live", "attempt", "expected"),
    [
        (job("PENDING", "Dependency"), 0, "preparing"),
        (job("PENDING", "Resources"), 0, "pending"),
        (job("PENDING") | {"41": JobState(state="RUNNING")}, 0, "preparing"),
        (job("PENDING", "Priority") | {"41": JobState(state="COMPLETED")}, 0, "pending"),
        (job("PENDING", "BeginTime"), 1, "requeued"),
        (job("RUNNING"), 1, "running"),
        (job("COMPLETING"), 1, "running"),
        (job("CANCELLED"), 1, "cancelled"),
        (job("TIMEOUT"), 1, "failed"),
        (job("NODE_FAIL"), 1, "failed"),
        ({}, 0, "pending"),
    ],
)
def test_slurm(run: RunDir, live: dict[str, JobState], attempt: int, expected: str) -> None:
    run.update_run(attempt=attempt)
    status = read_status(run, live)
    assert status.state == expected
    if not live:
        assert "does not answer" in status.reason, "silence is not taken for an end"


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_what_the_supervisor_recorded_stands(run: RunDir, state: str) -> None:
    run.update_run(state=state, reason="why")
    assert read_status(run, job("RUNNING")).state == state


def test_a_failed_preparation_says_its_own_words(run: RunDir) -> None:
    (run.path / "exits").mkdir()
    write_json(run.path / "exits" / "prepare.json", {"errors": ["train.jsonl:4: row has no text"]})
    status = read_status(run, {"41": JobState(state="FAILED"), "42": JobState(state="CANCELLED")})
    assert status.state == "failed"
    assert "train.jsonl:4" in status.reason


def test_progress(run: RunDir) -> None:
    run.update_run(state="running", attempt=2, restarts=1, nodes=["node1"])
    now = time.time()
    for step in range(1, 6):
        line = {
            "step": step,
            "loss": 1.0 / step,
            "lr": 1e-5,
            "attempt": 2,
            "time": now - 10 + 2 * step,
            "total_steps": 10,
            "eta_seconds": 20.0 - 2 * step,
        }
        append_line(run.metrics, line)
    for step, loss in ((2, 3.0), (3, 2.0), (5, 2.5)):
        append_line(run.metrics, {"step": step, "eval_loss": loss, "attempt": 2, "time": now, "total_steps": 10})
    run.metrics.open("a").write('{"step": 6, "lo')  # torn by a power loss
    run.beat(0, 5, "train")
    status = read_status(run, job("RUNNING"), now=time.time() + 3)
    assert (status.step, status.total_steps, status.eta_seconds) == (5, 10, 10.0)
    assert status.heartbeat_age_seconds is not None and 3 <= status.heartbeat_age_seconds < 10
    assert status.restarts == 1
    assert (status.loss, status.learning_rate) == (0.2, 1e-5), "of training, though an evaluation was logged later"
    assert (status.eval_loss, status.best_eval_loss, status.best_step, status.best) == (2.5, 2.0, 3, None)


def test_an_attempt_that_loads_shows_no_figures_of_the_one_before(run: RunDir) -> None:
    append_line(run.metrics, {"step": 5, "loss": 1.0, "attempt": 1, "tokens_per_second": 9.0, "time": time.time()})
    run.beat(0, 5, "train")
    run.update_run(state="running", attempt=2, attempt_started=time.time() + 1)
    status = read_status(run, job("RUNNING"))
    assert (status.phase, status.step, status.tokens_per_second, status.eta_seconds) == ("load", 5, None, None)


def test_a_cancel_under_way_is_said(run: RunDir) -> None:
    run.update_run(state="running", attempt=1)
    write_json(run.stop, {"reason": "cancelled"})
    assert "stopping" in read_status(run, job("RUNNING")).reason


def test_a_run_on_kubernetes_has_the_names_of_its_objects(run: RunDir) -> None:
    """In a directory of runs it is listed with the same job as in its cluster."""
    run.update_run(backend="kubernetes", state="running", job_id=None, prepare_job_id=None)
    run.config.write_text("kubernetes: {kind: jobset}\n")
    status = read_status(run, {})
    assert (status.job_id, status.prepare_job_id) == ("jobset/run", "job/run-prepare")
    run.config.write_text("kubernetes: {kind: of another version}\n")
    assert read_status(run, {}).job_id == "job/run"


def test_a_local_run_whose_supervisor_is_gone(run: RunDir) -> None:
    run.update_run(backend="local", state="running", pid=os.getpid(), host=os.uname().nodename)
    assert supervisor(run) == "gone", "a reused pid is not the supervisor"
    status = LocalBackend().status(run)
    assert status.state == "failed"
    assert "resume" in status.reason


def test_a_local_run_on_another_host_is_not_taken_for_dead(run: RunDir) -> None:
    run.update_run(backend="local", state="running", pid=os.getpid(), host="elsewhere")
    status = LocalBackend().status(run)
    assert status.state == "running"
    assert "elsewhere" in status.reason
    with pytest.raises(UsageError, match="elsewhere"):
        LocalBackend().resume(run, "job.sh")
    with pytest.raises(UsageError, match="elsewhere"):
        LocalBackend().cancel(run, now=True)
    LocalBackend().cancel(run, now=False)
    assert run.stop_reason() == "cancelled", "the request goes over the shared file system"


def test_a_torn_heartbeat_is_passed_over(run: RunDir) -> None:
    run.beat(0, 3, "train")
    (run.heartbeats / "rank-1.json").write_text("")
    (run.heartbeats / "rank-2.json").write_text("[]")
    assert read_status(run, job("RUNNING")).heartbeat_age_seconds is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "stop_requested"),
        ("please", "stop_requested"),
        ("[1]", "stop_requested"),
        ('{"reason": 5}', "stop_requested"),
        ('{"reason": "cancelled"}', "cancelled"),
    ],
)
def test_anybody_may_write_control_stop(run: RunDir, content: str, reason: str) -> None:
    assert run.stop_reason() is None
    run.stop.write_text(content)
    assert run.stop_reason() == reason


def test_an_empty_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "young")
    run.make()
    status = read_status(run, {})
    assert (status.state, status.step, status.attempts) == ("unknown", None, [])
