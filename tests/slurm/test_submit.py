"""What sbatch refuses, what is refused before it, and what is left behind: nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_lab import Lab, wait_until
from slurm_run import ROOT, Place

pytestmark = pytest.mark.slurm


@pytest.fixture
def place(lab: Lab, tmp_path: Path) -> Iterator[Place]:
    yield Place(lab, tmp_path, ROOT / "configs" / "sample" / "train.jsonl")
    assert not list(tmp_path.rglob("PWNED"))


def jobs_left(place: Place) -> list[str]:
    return place.lab.run("squeue", "-h", "-o", "%i %j %T").splitlines()


@pytest.mark.parametrize(
    "settings",
    [("slurm.partition=nowhere",), ("slurm.partition=nowhere", "slurm.prepare_partition=gpu")],
    ids=["preparation", "training"],
)
def test_sbatch_refuses(place: Place, settings: tuple[str, ...]) -> None:
    done = place.submit("refused", *settings, code=4)
    assert "invalid partition specified: nowhere" in done.stderr
    assert done.stdout == ""
    assert not (place.runs / "refused").exists()
    assert not jobs_left(place)


@pytest.mark.parametrize(
    "name", ["a b", "$(touch PWNED)", "x\n#SBATCH --nodes=9", "../up", "-rf", "a;touch PWNED", "x" * 65, ""]
)
def test_a_name_that_is_none_is_refused(place: Place, name: str) -> None:
    place.submit(name, code=2)
    assert not place.runs.exists()
    assert not jobs_left(place)


def test_a_directory_with_a_line_break_is_refused(place: Place) -> None:
    place.runs = place.directory / "x\n#SBATCH --nodes=9\ntouch PWNED\n"
    place.submit("run", code=2)
    assert [path.name for path in place.directory.iterdir()] == []
    assert not jobs_left(place)


def test_a_waiting_run_is_cancelled_with_its_preparation(place: Place) -> None:
    blocker = place.lab.sbatch("-N4", "--exclusive", "--output=/dev/null", script="#!/bin/bash\nsleep 300\n")
    place.lab.wait(blocker, "RUNNING")
    place.submit("waiting")
    run = place.run("waiting")
    assert len(jobs_left(place)) == 3
    # slurmctld names the reason (a dependency) a moment after the job is in the queue
    wait_until("the state", lambda: run.status()["state"] == "preparing", 10)
    listed = json.loads(place.cli("list", "--runs-dir", str(place.runs), "--json").stdout)
    assert [(entry["name"], entry["state"]) for entry in listed] == [("waiting", "preparing")]
    place.cli("cancel", "waiting", "--runs-dir", str(place.runs))
    assert jobs_left(place) == [f"{blocker} sbatch RUNNING"]
    assert run.status()["state"] == "cancelled"
    assert place.lab.job(run.job_id)["JobState"] == "CANCELLED"


def test_a_name_that_is_taken_is_refused(place: Place) -> None:
    (place.runs / "taken").mkdir(parents=True)
    place.submit("taken", code=2)
    assert list((place.runs / "taken").iterdir()) == []
    assert not jobs_left(place)


def test_a_preparation_that_fails_ends_the_run_and_says_why(place: Place) -> None:
    """The training job must not wait for ever, and `status` must say what was wrong with the data."""
    place.data = place.directory / "train.jsonl"
    place.data.write_text('{"text": "one"}\n' * 20)
    blocker = place.lab.sbatch("-N4", "--exclusive", "--output=/dev/null", script="#!/bin/bash\nsleep 300\n")
    place.submit("spoilt")
    place.data.write_text('{"text": "one"}\n{"txet": "two"}\n')
    place.lab.run("scancel", blocker)
    run = place.run("spoilt")
    assert place.lab.wait(run.job_id)["JobState"] == "CANCELLED"
    status = json.loads(
        place.cli("status", "spoilt", "--runs-dir", str(place.runs), "--json", code=1).stdout,
    )
    assert status["state"] == "failed"
    assert f"{place.data}:2" in status["reason"]
    assert not jobs_left(place)
