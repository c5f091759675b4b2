"""With which exit code a pod leaves when things go wrong: the controller must not take it for the run's end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from kubernetes_scenarios import SCENARIOS, rendered
from pod_world import Desk, process

from fullft_cluster.rundir import RunDir, write_atomic


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "example")
    made.make()
    write_atomic(made.plan, rendered(SCENARIOS["processes"])[0].files["plan.json"])
    made.update_run(name="example", state="preparing", attempt=0)
    return made


@pytest.mark.parametrize("stopped", [75, 143])
def test_told_to_leave_while_a_worker_fails(run: RunDir, stopped: int) -> None:
    """Its neighbour on a lost node has torn it down: that is for the supervisor to judge, not for the controller."""
    desk = Desk(run)
    with process(run, "--stopped-exit", str(stopped)) as agent:
        desk.open(1, "trap 'exit 1' TERM; echo up; while :; do sleep 0.02; done")
        desk.up(1)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == stopped
    assert desk.ended(1) == [1]


@pytest.mark.parametrize("stopped", [75, 143])
def test_an_agent_that_fails_itself_is_made_anew(run: RunDir, stopped: int) -> None:
    """A fault of ours. 1 would end a PyTorchJob for good."""
    program = "from fullft_cluster.runtime import pod_agent\npod_agent.Agent._wait_for_word = lambda *a: 1 / 0"
    with process(run, "--stopped-exit", str(stopped), before=program) as agent:
        desk = Desk(run)
        desk.open(1, "exit 75", ticket=desk.new_ticket())
        desk.ended(1)
        assert agent.wait(timeout=60) == stopped
        assert agent.stdout is not None and "Traceback" in agent.stdout.read()


def test_a_volume_that_may_not_be_written_is_no_reason_to_try_again(run: RunDir) -> None:
    program = "import pathlib\npathlib.Path.mkdir = lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, 'no'))"
    with process(run, "--stopped-exit", "143", before=program) as agent:
        assert agent.wait(timeout=60) == 93
