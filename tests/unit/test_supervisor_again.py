"""A supervisor that finds what one before it has left: an attempt under way, or one that was not written down whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import NODES, Script, endless, ends, quick, scripted_run, supervise

from fullft_cluster.rundir import RunDir, read_lines, write_json
from fullft_cluster.runtime.supervisor import Supervisor


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return scripted_run(tmp_path)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from quick(monkeypatch)


# --- where the workers outlive their supervisor
def opened(run: RunDir, attempt: int = 1, **changes: Any) -> None:
    """What a supervisor leaves that is killed while an attempt is running."""
    run.update_run(state="running", attempt=attempt, attempt_started=time.time() - 100, nodes=list(NODES), **changes)
    run.exits(attempt).mkdir(parents=True)


def test_an_attempt_that_is_under_way_is_watched_to_its_end(run: RunDir) -> None:
    opened(run)
    platform = Script(run)
    platform.under_way = ends(0, 0, kind="done", steps=[1, 2])
    code, attempts, state = supervise(run, platform)
    assert (code, state["state"], state["attempt"], state["restarts"]) == (0, "completed", 1, 0)
    assert [(line["attempt"], line["cause"], line["exit_codes"]) for line in attempts] == [(1, "done", [0, 0])]
    assert attempts[0]["end"] - attempts[0]["start"] > 99, "it began when it began, not when it was found"


def test_it_is_followed_by_another_as_if_nothing_had_happened(run: RunDir) -> None:
    opened(run, started_from_step=None)
    platform = Script(run, ends(0, 0, kind="done", steps=[3]))
    platform.under_way = ends(75, 75, kind="stopped", steps=[1, 2], commit=2)
    _, attempts, state = supervise(run, platform)
    assert [line["cause"] for line in attempts] == ["stop_requested", "done"]
    assert (state["attempt"], state["restarts"]) == (2, 1)
    assert platform.asked_for == [1]


def test_the_budget_of_failures_goes_on_over_supervisors(run: RunDir) -> None:
    """Each of them is killed once its attempt is opened; the fourth failure without a checkpoint is the last."""
    opened(run)
    for attempt in (1, 2, 3, 4):
        platform = Script(run, lambda run, attempt: (_ for _ in ()).throw(KeyboardInterrupt))
        platform.under_way = ends(1, 1)
        if attempt < 4:
            with pytest.raises(KeyboardInterrupt):
                supervise(run, platform)
        else:
            code, attempts, state = supervise(run, platform)
    assert (code, state["state"]) == (1, "failed")
    assert [line["decision"] for line in attempts] == ["requeue", "requeue", "requeue", "stop"]


def test_a_hang_is_seen_by_the_supervisor_that_came_later(run: RunDir) -> None:
    from msgspec.structs import replace

    opened(run)
    platform = Script(run, here=True)
    platform.under_way = endless
    supervisor = Supervisor(run, platform)
    survival = replace(supervisor.config.survival, hang_seconds=1, max_failures=0)
    supervisor.config = replace(supervisor.config, survival=survival)
    assert supervisor.supervise() == 1
    assert platform.killed
    assert [line["cause"] for line in read_lines(run.attempts)] == ["hang"]


def test_a_cancel_that_came_while_nobody_watched_is_honoured(run: RunDir) -> None:
    opened(run)
    write_json(run.stop, {"reason": "cancelled"})
    platform = Script(run)
    platform.under_way = ends(75, 75, kind="stopped", steps=[1], commit=1)
    code, attempts, state = supervise(run, platform)
    assert (code, state["state"]) == (0, "cancelled")
    assert [line["cause"] for line in attempts] == ["cancelled"]


def test_an_attempt_that_has_its_line_is_not_watched_again(run: RunDir) -> None:
    """The supervisor was killed between two attempts."""
    supervise(run, Script(run, ends(75, 75, kind="stopped", commit=1), here=False))
    platform = Script(run, ends(0, 0, kind="done"))
    platform.under_way = ends(1, 1)
    _, attempts, _ = supervise(run, platform)
    assert platform.asked_for == []
    assert [line["cause"] for line in attempts] == ["stop_requested", "done"]


def test_what_ended_with_its_supervisor_is_settled(run: RunDir) -> None:
    opened(run)
    platform = Script(run, ends(0, 0, kind="done"))
    platform.past = "REQUEUED"
    _, attempts, _ = supervise(run, platform)
    assert platform.asked_for == [1]
    assert [line["cause"] for line in attempts] == ["operator_requeue", "done"]


def test_a_node_that_was_lost_meanwhile_is_excluded(run: RunDir) -> None:
    opened(run)
    platform = Script(run, ends(0, 0, kind="done"))
    platform.under_way, platform.life, platform.down = ends(1, -9), "NODE_FAIL", NODES
    _, attempts, state = supervise(run, platform)
    assert [line["cause"] for line in attempts] == ["node_fail", "done"]
    assert state["excluded_nodes"] == ["node1"]


def test_on_slurm_and_here_no_worker_outlives_its_supervisor(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullft_cluster.runtime.platform import LocalPlatform, SlurmPlatform

    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1")
    assert LocalPlatform().running(run, 1) is None
    assert SlurmPlatform().running(run, 1) is None


# --- a supervisor that ended between the line of an attempt and run.json
def unheard(run: RunDir, attempt: int = 1) -> None:
    """Put run.json back to where it stood before the attempt was concluded."""
    run.update_run(state="running", attempt=attempt, restarts=0, history={}, excluded_nodes=[], ended=None)


def test_a_failure_that_nobody_heard_of_counts(run: RunDir) -> None:
    supervise(run, Script(run, ends(1, 1), here=False))
    unheard(run)
    _, attempts, state = supervise(run, Script(run, ends(1, 1), here=False))
    assert [line["cause"] for line in attempts] == ["crash", "crash"]
    assert (state["history"]["failures"], state["restarts"]) == (2, 2)


def test_a_lost_node_that_nobody_heard_of_is_excluded(run: RunDir) -> None:
    platform = Script(run, ends(1, -9), here=False)
    platform.life, platform.down = "NODE_FAIL", NODES
    supervise(run, platform)
    unheard(run)
    _, _, state = supervise(run, Script(run, ends(0, 0, kind="done")))
    assert state["excluded_nodes"] == ["node1"] and state["state"] == "completed"


@pytest.mark.parametrize(
    ("codes", "kind", "code", "state"), [((0, 0), "done", 0, "completed"), ((93, 1), "config", 1, "failed")]
)
def test_an_end_that_nobody_heard_of_is_the_end(
    run: RunDir, codes: tuple[int, int], kind: str, code: int, state: str
) -> None:
    supervise(run, Script(run, ends(*codes, kind=kind)))
    unheard(run)
    assert supervise(run, Script(run))[0] == code, "no attempt is made: there is none that Script could make"
    assert run.read_run()["state"] == state and run.read_run()["ended"]


def test_an_attempt_that_was_numbered_and_never_opened_gives_its_number_back(run: RunDir) -> None:
    opened(run)
    platform = Script(run, ends(0, 0, kind="done"))
    platform.opened = False
    _, attempts, state = supervise(run, platform)
    assert [(line["attempt"], line["cause"]) for line in attempts] == [(1, "done")]
    assert state["history"].get("failures", 0) == 0
