"""The supervisor with scripted workers: what it writes, decides and requeues. Real processes and files, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.config_load import resolve, to_yaml
from fullft_cluster.errors import SchedulerError
from fullft_cluster.model import load_model
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.rundir import RunDir, append_line, read_lines, write_atomic, write_json
from fullft_cluster.runtime.policy import Decision
from fullft_cluster.runtime.supervisor import SupersededError, Supervisor

NODES = ("node1",)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    resolved = resolve({"backend": "local", "model": "tiny", "train.max_steps": 10}, [], None)
    run = RunDir(tmp_path / "run")
    run.make()
    write_atomic(run.config, to_yaml(resolved))
    plan = make_plan(resolved.config, load_model("tiny"), resolved.cluster, Data(rows=100))
    assert plan.gpus == 2
    write_atomic(run.plan, plan.to_json())
    run.update_run(name="run", backend="local", state="pending", attempt=0, restarts=0)
    return run


class Script:
    """A platform whose attempts end as they are told to."""

    def __init__(self, run: RunDir, *lives: Callable[[RunDir, int], None], here: bool = True) -> None:
        self.run, self.lives, self.here = run, list(lives), here
        self.requeued: list[tuple[str, tuple[str, ...]]] = []
        self.life: str | None = None
        self.past: str | None = None
        self.down: tuple[str, ...] = ()
        self.reason = "time_limit"
        self.killed = False
        self.opened = True
        """Whether the attempt that run.json numbers was started."""
        self.under_way: Callable[[RunDir, int], None] | None = None
        """How the attempt ends that a supervisor before this one has started; None where it ended with it."""
        self.asked_for: list[int] = []

    def nodes(self) -> tuple[str, ...]:
        return NODES

    def start(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        return self._live(self.lives.pop(0), run, attempt)

    def _live(self, life: Callable[[RunDir, int], None], run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
        if getattr(life, "endless", False):
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        life(run, attempt)
        return subprocess.Popen(["true"])

    def running(self, run: RunDir, attempt: int) -> subprocess.Popen[bytes] | None:
        self.asked_for.append(attempt)
        return self._live(self.under_way, run, attempt) if self.under_way else None

    def began(self, run: RunDir, attempt: int) -> bool:
        return self.opened

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        self.killed = True
        child.kill()

    def why(self, signum: int, lead_seconds: int) -> str:
        return self.reason

    def life_state(self) -> str | None:
        return self.life

    def past_life_state(self) -> str | None:
        return self.past

    def bad_nodes(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        return self.down

    def requeue(self, decision: Decision, excluded: tuple[str, ...]) -> bool:
        self.requeued.append((decision.cause, excluded))
        return self.here


def ends(
    *codes: int, kind: str = "other", steps: Sequence[int] = (), commit: int | None = None
) -> Callable[[RunDir, int], None]:
    """A life: logs some steps, commits a checkpoint perhaps, and ends with these exit codes."""

    def life(run: RunDir, attempt: int) -> None:
        for step in steps:
            append_line(run.metrics, {"step": step, "loss": 1.0, "attempt": attempt, "time": time.time()})
        if commit is not None:
            directory = run.checkpoints / f"step-{commit}"
            directory.mkdir()
            (directory / "COMPLETE").write_text("{}")
        for rank, code in enumerate(codes):
            report = {
                "rank": rank,
                "exit_code": code,
                "kind": kind,
                "message": "words",
                "step": steps[-1] if steps else 0,
                "resumed_from": steps[0] - 1 if steps and steps[0] > 1 else None,
            }
            write_json(run.exits(attempt) / f"rank-{rank}.json", report)
        write_json(run.exits(attempt) / "node-0.json", {"node": "node1", "node_rank": 0, "exit_codes": list(codes)})

    return life


def endless(run: RunDir, attempt: int) -> None:
    """A life that stands still until it is ended."""


endless.endless = True  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fullft_cluster.runtime.supervisor.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("fullft_cluster.runtime.supervisor.POLL_SECONDS", 0.02)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def supervise(run: RunDir, platform: Any) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    code = Supervisor(run, platform).supervise()
    return code, list(read_lines(run.attempts)), run.read_run()


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
