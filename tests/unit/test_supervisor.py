"""The supervisor with scripted workers: what it writes, decides and requeues. Real processes and files, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import NODES, Script, endless, ends, quick, scripted_run, supervise

from fullft_cluster.errors import SchedulerError
from fullft_cluster.rundir import RunDir, append_line, read_lines, write_json
from fullft_cluster.runtime.policy import Decision
from fullft_cluster.runtime.supervisor import SupersededError, Supervisor


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return scripted_run(tmp_path)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from quick(monkeypatch)


def test_requeued_then_done(run: RunDir) -> None:
    write_json(run.stop, {"reason": "time_limit"})  # honoured by a life before: a new attempt takes it away
    platform = Script(run, ends(75, 75, kind="stopped", steps=[1, 2], commit=2), ends(0, 0, kind="done", steps=[3, 4]))
    code, attempts, state = supervise(run, platform)
    assert code == 0
    assert [line["cause"] for line in attempts] == ["stop_requested", "done"]
    assert [line["decision"] for line in attempts] == ["requeue", "done"]
    assert [(line["first_step"], line["last_step"]) for line in attempts] == [(1, 2), (3, 4)]
    assert attempts[0]["seconds_lost"] == 0
    assert attempts[0]["exit_codes"] == [75, 75]
    assert (state["state"], state["attempt"], state["restarts"]) == ("completed", 2, 1)
    assert not run.stop.exists()


@pytest.mark.parametrize(("exit_code", "kind", "state"), [(0, "done", "completed"), (93, "config", "failed")])
def test_a_run_that_is_over_stays_so_when_its_job_is_requeued(
    run: RunDir, exit_code: int, kind: str, state: str
) -> None:
    first = supervise(run, Script(run, ends(exit_code, exit_code, kind=kind)))
    second = supervise(run, Script(run))
    assert second == first
    assert second[2]["state"] == state
    run.reopen()
    _, attempts, now = supervise(run, Script(run, ends(0, 0, kind="done")))
    assert (len(attempts), now["state"]) == (2, "completed")


def test_the_scheduler_makes_the_next_attempt_elsewhere(run: RunDir) -> None:
    platform = Script(run, ends(75, 75, kind="stopped", commit=1), here=False)
    code, attempts, state = supervise(run, platform)
    assert code == 0
    assert platform.requeued == [("stop_requested", ())]
    assert state["state"] == "requeued"
    assert len(attempts) == 1


def test_a_refused_requeue_is_said(run: RunDir) -> None:
    class Refusing(Script):
        def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
            raise SchedulerError("scontrol: Requested operation is presently disabled")

    with pytest.raises(SchedulerError):
        supervise(run, Refusing(run, ends(75, 75, kind="stopped", commit=1)))
    assert run.read_run()["state"] == "failed"
    assert "presently disabled" in run.read_run()["reason"]


def test_a_fault_is_given_up_and_the_log_names_the_worker(run: RunDir) -> None:
    code, attempts, state = supervise(run, Script(run, ends(1, 93, kind="data")))
    assert code == 1
    assert attempts[0]["cause"] == "data"
    assert state["state"] == "failed"
    assert "rank 1 on node1 exited 93" in state["reason"]


def test_failures_without_progress_are_counted_over_lives(run: RunDir) -> None:
    platform = Script(run, *[ends(1, 1) for _ in range(9)])
    code, attempts, _ = supervise(run, platform)
    assert code == 1
    assert [line["decision"] for line in attempts] == ["requeue", "requeue", "requeue", "stop"]


def test_a_lost_node_is_excluded(run: RunDir) -> None:
    platform = Script(run, ends(1, -9), here=False)
    platform.down = NODES
    _, attempts, state = supervise(run, platform)
    assert platform.requeued == [("node_fail", NODES)]
    assert state["excluded_nodes"] == ["node1"]
    assert attempts[0]["decision"] == "requeue_without_node"


def test_a_signal_becomes_control_stop(run: RunDir) -> None:
    platform = Script(run, endless, here=False)
    platform.reason = "preempted"
    supervisor = Supervisor(run, platform)
    supervisor.install_handlers()

    def warn() -> None:
        while not supervisor.run.read_run().get("attempt"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not run.stop.exists():
            time.sleep(0.01)
        ends(75, 75, kind="stopped", steps=[1], commit=1)(run, 1)
        children = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "time.sleep"], capture_output=True, check=True
        )
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)

    thread = threading.Thread(target=warn)
    thread.start()
    assert supervisor.supervise() == 0
    thread.join()
    assert json.loads(run.stop.read_bytes())["reason"] == "preempted"
    assert [line["cause"] for line in read_lines(run.attempts)] == ["preempted"]


def test_a_heartbeat_that_stands_still_is_a_hang(run: RunDir) -> None:
    platform = Script(run, endless, here=False)
    supervisor = Supervisor(run, platform)
    from msgspec.structs import replace

    supervisor.config = replace(supervisor.config, survival=replace(supervisor.config.survival, hang_seconds=1))
    supervisor.supervise()
    assert platform.killed
    assert [line["cause"] for line in read_lines(run.attempts)] == ["hang"]


def test_cancelled_before_it_started(run: RunDir) -> None:
    write_json(run.stop, {"reason": "cancelled"})
    code, attempts, state = supervise(run, Script(run))
    assert (code, attempts, state["state"]) == (0, [], "cancelled")


@pytest.mark.parametrize(
    ("past", "cause"),
    [("NODE_FAIL", "node_fail"), ("PREEMPTED", "preempted"), ("REQUEUED", "operator_requeue")],
)
def test_an_attempt_whose_supervisor_died_gets_its_line(run: RunDir, past: str, cause: str) -> None:
    started = time.time() - 100
    run.update_run(state="running", attempt=1, attempt_started=started, nodes=["node1"], started_from_step=None)
    run.exits(1).mkdir(parents=True)
    for step in (1, 2, 3):
        append_line(run.metrics, {"step": step, "loss": 1.0, "attempt": 1, "time": started + step})
    run.beat(0, 3, "train")
    platform = Script(run, ends(0, 0, kind="done", steps=[1, 2, 3, 4]))
    platform.past = past
    code, attempts, state = supervise(run, platform)
    assert code == 0
    assert [line["cause"] for line in attempts] == [cause, "done"]
    assert attempts[0]["exit_codes"] == [None, None]
    assert (attempts[0]["first_step"], attempts[0]["last_step"]) == (1, 3)
    assert attempts[0]["seconds_lost"] > 0
    assert (state["attempt"], state["state"]) == (2, "completed")


def test_a_lost_attempt_that_said_93_stays_stopped(run: RunDir) -> None:
    run.update_run(state="running", attempt=1, attempt_started=time.time(), nodes=["node1"])
    run.exits(1).mkdir(parents=True)
    ends(93, 1, kind="config")(run, 1)
    code, attempts, state = supervise(run, Script(run))
    assert (code, state["state"], len(attempts)) == (1, "failed", 1)


def test_a_cancelled_attempt_gets_its_line_and_the_resumed_run_goes_on(run: RunDir) -> None:
    started = time.time() - 50
    run.update_run(state="cancelled", attempt=1, attempt_started=started, nodes=["node1"], ended=time.time())
    run.exits(1).mkdir(parents=True)
    write_json(run.stop, {"reason": "cancelled"})
    run.reopen()
    code, attempts, state = supervise(run, Script(run, ends(0, 0, kind="done")))
    assert (code, state["state"]) == (0, "completed")
    assert [line["cause"] for line in attempts] == ["cancelled", "done"]


def test_words_in_control_stop_ask_for_a_stop(run: RunDir) -> None:
    """`echo please > RUN/control/stop` while an attempt runs."""

    def life(run: RunDir, attempt: int) -> None:
        run.stop.write_text("please\n")
        (run.heartbeats / "rank-0.json").write_text("")
        ends(75, 75, kind="stopped", steps=[1], commit=1)(run, attempt)

    _, attempts, _ = supervise(run, Script(run, life, here=False))
    assert [line["cause"] for line in attempts] == ["stop_requested"]


def test_a_supervisor_that_was_cut_off_writes_nothing(run: RunDir) -> None:
    """A network partition: SLURM has started the job again elsewhere while this life went on."""

    def life(run: RunDir, attempt: int) -> None:
        ends(1, 1)(run, attempt)
        run.update_run(attempt=2, state="running", restarts=1)

    platform = Script(run, life, here=False)
    with pytest.raises(SupersededError):
        supervise(run, platform)
    state = run.read_run()
    assert (state["attempt"], state["state"], state["restarts"]) == (2, "running", 1)
    assert not run.attempts.exists()
    assert platform.requeued == [], "it would requeue the life that is running now"


def test_an_older_cancel_does_not_explain_a_later_loss(run: RunDir) -> None:
    run.update_run(state="cancelled", attempt=1, attempt_started=time.time(), nodes=["node1"])
    run.exits(1).mkdir(parents=True)
    run.reopen()
    supervise(run, Script(run, ends(75, 75, kind="stopped", commit=3), here=False))
    run.update_run(state="running", attempt=3, attempt_started=time.time())
    run.exits(3).mkdir(parents=True)
    platform = Script(run, ends(0, 0, kind="done"))
    platform.past = "NODE_FAIL"
    _, attempts, state = supervise(run, platform)
    assert [line["cause"] for line in attempts] == ["cancelled", "stop_requested", "node_fail", "done"]
    assert state["state"] == "completed"


def test_workers_that_outlive_the_time_limit_are_ended_and_requeued(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM requeues nothing after a TIMEOUT, and kills the supervisor after KillWait."""
    monkeypatch.setattr("fullft_cluster.runtime.supervisor.OVER_TIME_SECONDS", 0.1)
    platform = Script(run, endless, here=False)
    supervisor = Supervisor(run, platform)
    supervisor.install_handlers()
    (run.checkpoints / "step-5").mkdir()

    def limit() -> None:
        while not run.read_run().get("attempt"):
            time.sleep(0.01)
        (run.checkpoints / "step-5" / "COMPLETE").write_text("{}")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=limit)
    thread.start()
    assert supervisor.supervise() == 0
    thread.join()
    assert platform.killed
    assert platform.requeued == [("time_limit", ())]
    assert [line["cause"] for line in read_lines(run.attempts)] == ["time_limit"]


def test_a_users_exclusion_stays_beside_a_lost_node(run: RunDir) -> None:
    from msgspec.structs import replace

    platform = Script(run, ends(1, -9), here=False)
    platform.down = NODES
    supervisor = Supervisor(run, platform)
    config = supervisor.config
    supervisor.config = replace(config, slurm=replace(config.slurm, exclude="node[7-8]"))
    supervisor.supervise()
    assert platform.requeued == [("node_fail", ("node[7-8]", "node1"))]


def test_steps_are_right_when_not_every_one_is_logged(run: RunDir) -> None:
    def life(run: RunDir, attempt: int) -> None:
        ends(75, 75, kind="stopped", steps=[60, 70])(run, attempt)
        for rank in (0, 1):
            path = run.exits(attempt) / f"rank-{rank}.json"
            write_json(path, {**json.loads(path.read_bytes()), "resumed_from": 50})

    _, attempts, _ = supervise(run, Script(run, life, here=False))
    assert (attempts[0]["first_step"], attempts[0]["last_step"]) == (51, 70)


def test_an_unexpected_fault_is_said_where_status_finds_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullft_cluster.runtime import supervisor as module

    class Broken(Script):
        def start(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "platform_of", lambda backend: Broken(run))
    assert module.main(["--run", str(run.path), "--backend", "local"]) == 1
    assert run.read_run()["state"] == "failed"
    assert "No space left" in run.read_run()["reason"]
