"""What interrupts a run on SLURM, for real: each time it goes on, and ends with the very numbers of an undisturbed run.

All runs live in a directory whose name a careless script would execute or split.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from slurm_lab import Lab, wait_until
from slurm_run import ROOT, SAVE_STEPS, STEPS, Place, Run

pytestmark = pytest.mark.slurm

HOSTILE = 'run\'s "dir" $(touch PWNED) `touch PWNED` #SBATCH --nodes=9; 100%j'
ROWS = 400


@pytest.fixture(scope="session")
def place(running_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("lab") / HOSTILE
    directory.mkdir()
    shared = Path(os.environ.get("FULLFT_CLUSTER_SHARED", ROOT.parent / "shared")) / "data" / "gsm8k_train.jsonl"
    source = shared if shared.is_file() else ROOT / "configs" / "sample" / "train.jsonl"
    data = directory / "train.jsonl"
    with source.open() as rows:
        data.write_text("".join(itertools.islice(rows, ROWS)))
    return Place(running_lab, directory, data)


@pytest.fixture(scope="session")
def reference(place: Place) -> Run:
    """A run that nothing disturbs; what was handed to sbatch is what a dry run prints."""
    place.lab.reset()
    script = place.submit("reference", dry_run=True).stdout
    assert not place.runs.exists(), "a dry run changes nothing"
    assert place.submit("reference").stdout == "reference\n"
    run = place.run("reference")
    received = place.lab.run("scontrol", "write", "batch_script", run.job_id, "-", strip=False)
    assert received == script
    status = run.completed()
    assert status["state"] == "completed", run.evidence()
    assert [attempt["cause"] for attempt in status["attempts"]] == ["done"]
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    return run


@pytest.fixture
def started(lab: Lab, place: Place, reference: Run, request: pytest.FixtureRequest) -> Run:
    """A run of its own for each test, submitted."""
    name = request.node.name.replace("_", "-").removeprefix("test-")[:60]
    place.submit(name)
    return place.run(name)


def assert_same_as_undisturbed(run: Run, reference: Run) -> None:
    assert run.losses() == reference.losses()
    weights = run.weights()
    assert weights
    assert weights == reference.weights()
    assert not list(run.place.directory.parent.rglob("PWNED"))


def assert_told(run: Run, status: dict[str, Any], causes: list[str]) -> None:
    """attempts.jsonl and `status --json` tell the same story, and each attempt goes on where the one before stopped."""
    assert [attempt["cause"] for attempt in run.attempts] == causes, run.evidence()
    assert status["attempts"] == run.attempts
    assert status["state"] == "completed"
    assert (status["step"], status["total_steps"], status["attempt"]) == (STEPS, STEPS, len(causes))
    for before, after in itertools.pairwise(run.attempts):
        assert after["first_step"] == before["committed_step"] + 1


def warn_of_the_time_limit(run: Run) -> None:
    """Shorten the job's time limit, as an operator may, until slurmctld's next look (every 30 s) finds it near."""
    lead = run.json("plan.json")["signal_lead_seconds"]
    hours, minutes, seconds = map(int, run.lab.job(run.job_id)["RunTime"].split(":"))
    minutes_now = hours * 60 + minutes + (seconds > 0)
    run.lab.run("scontrol", "update", f"jobid={run.job_id}", f"timelimit={minutes_now + max(1, lead // 60)}")


def requeue(run: Run) -> None:
    run.lab.run("scontrol", "requeue", run.job_id)


def preempt(run: Run) -> None:
    """Submit a short job of higher priority that wants every node."""
    run.lab.sbatch("-p", "high", "-N4", "--exclusive", "--output=/dev/null", script="#!/bin/bash\nsleep 1\n")


def ask_to_stop(run: Run, how: Any, attempt: int, at: int) -> dict[str, Any]:
    """Interrupt an attempt in mid run at step `at` or soon after; return its line in attempts.jsonl."""
    run.frozen_at(attempt, at)
    how(run)
    run.until("the request to reach control/stop", (run.path / "control" / "stop").exists, 100)
    run.thaw()
    line = run.attempt_ended(attempt)
    assert line["exit_codes"] == [75] * 4, run.evidence()
    assert line["committed_step"] == line["last_step"] >= at
    assert line["seconds_lost"] == 0
    return line


def test_preemption_time_limit_and_operator(started: Run, reference: Run) -> None:
    """Each is announced, so each ends in a checkpoint, and no step is lost or computed twice.

    Preemption comes first: what SLURM remembers of it must not be taken for the cause of the later ends.
    """
    run = started
    ask_to_stop(run, preempt, attempt=1, at=4)
    wait_until("the requeue", lambda: run.lab.job(run.job_id)["Restarts"] == "1", 60, run.evidence)
    assert run.status()["state"] in ("requeued", "running")
    ask_to_stop(run, warn_of_the_time_limit, attempt=2, at=9)
    wait_until("the requeue", lambda: run.lab.job(run.job_id)["Restarts"] == "2", 60, run.evidence)
    run.lab.run("scontrol", "update", f"jobid={run.job_id}", "timelimit=60")
    ask_to_stop(run, requeue, attempt=3, at=14)
    status = run.completed()
    assert_told(run, status, ["preempted", "time_limit", "operator_requeue", "done"])
    assert len(run.lines("metrics.jsonl")) == STEPS
    assert_same_as_undisturbed(run, reference)


def lose_power(run: Run, attempt: int, batch_host: bool, at: int) -> None:
    """Take the power of one of the run's nodes in mid run, and wait for the attempt on other nodes."""
    run.frozen_at(attempt, at)
    job = run.lab.job(run.job_id)
    nodes = run.lab.nodes_of(run.job_id)
    node = job["BatchHost"] if batch_host else next(name for name in nodes if name != job["BatchHost"])
    run.lab.crash(node)
    run.thaw()
    line = run.attempt_ended(attempt)
    assert line["cause"] == "node_fail", run.evidence()
    assert node in line["nodes"]
    run.until("the next attempt", lambda: run.json("run.json").get("attempt") == attempt + 1)
    assert node not in run.lab.nodes_of(run.job_id)


def test_power_loss(started: Run, reference: Run) -> None:
    """It is not announced, so the steps since the last checkpoint are computed again, to the same numbers."""
    run = started
    lose_power(run, attempt=1, batch_host=False, at=SAVE_STEPS + 2)
    lose_power(run, attempt=2, batch_host=True, at=2 * SAVE_STEPS + 2)
    status = run.completed()
    assert_told(run, status, ["node_fail", "node_fail", "done"])
    assert [attempt["committed_step"] for attempt in run.attempts] == [SAVE_STEPS, 2 * SAVE_STEPS, STEPS]
    assert len(run.lines("metrics.jsonl")) > STEPS
    assert_same_as_undisturbed(run, reference)


def test_cancel_and_resume(started: Run, reference: Run) -> None:
    """A cancelled run keeps what it has learnt; `resume` goes on from there."""
    run = started
    run.frozen_at(1, 4)
    run.place.cli("cancel", run.path.name, "--runs-dir", str(run.place.runs))
    run.thaw()
    first_job = run.job_id
    assert run.completed()["state"] == "cancelled"
    (line,) = run.attempts
    assert (line["cause"], line["exit_codes"]) == ("cancelled", [75] * 4)
    run.place.cli("resume", run.path.name, "--runs-dir", str(run.place.runs))
    assert run.job_id != first_job
    status = run.completed()
    assert_told(run, status, ["cancelled", "done"])
    assert_same_as_undisturbed(run, reference)
