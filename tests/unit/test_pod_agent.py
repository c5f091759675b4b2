"""The agent of a pod: tickets, attempts in place, the supervisor's word, and an order to leave. No training."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from kubernetes_scenarios import SCENARIOS, rendered
from pod_world import STOPS, Crew, Desk, Thread, process

from fullft_cluster.rundir import RunDir, read_json, write_atomic, write_json
from fullft_cluster.runtime import node, pod_agent
from fullft_cluster.runtime.meeting import Meeting, Opened, Ticket


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_agent, "Node", Crew)
    monkeypatch.setattr(pod_agent, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(node, "POLL_SECONDS", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "example")
    made.make()
    write_atomic(made.plan, rendered(SCENARIOS["processes"])[0].files["plan.json"])
    made.update_run(name="example", state="preparing", attempt=0)
    return made


def test_attempt_after_attempt_in_the_same_pod_until_the_run_is_completed(run: RunDir) -> None:
    desk, agent = Desk(run), Thread(run)
    first = desk.open(1, "exit 75", "exit 75")
    assert desk.ended(1) == [75, 75]
    run.update_run(state="requeued")
    second = desk.open(2, "exit 1", "exit 75")
    assert sorted(desk.ended(2)) == [1, 75]
    run.update_run(state="requeued")
    third = desk.open(3, "exit 0", "exit 0")
    assert desk.ended(3) == [0, 0]
    run.update_run(state="completed")
    assert agent.join() == 0
    assert len({first.ticket, second.ticket, third.ticket}) == 3, "what an attempt left is not taken for the next one's"


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("failed", 93), ("cancelled", 93)])
def test_the_word_after_an_attempt(run: RunDir, state: str, code: int) -> None:
    desk, agent = Desk(run), Thread(run, stopped_exit=143)
    desk.open(1, "exit 75")
    desk.ended(1)
    run.update_run(state=state)
    assert agent.join() == code


def test_a_supervisor_that_was_quick_has_opened_the_next_attempt_already(run: RunDir) -> None:
    """The pod never saw `requeued`: the number alone says that it goes on."""
    desk, agent = Desk(run), Thread(run)
    desk.open(1, "exit 1")
    run.update_run(attempt=2)  # while its worker ends
    desk.open(2, "exit 0")
    desk.ended(2)
    run.update_run(state="completed")
    assert agent.join() == 0


def test_a_ticket_says_where_the_pod_is(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"POD_NAME": "example-worker-0", "POD_UID": "1-2-3", "NODE_NAME": "gpu-7"}.items():
        monkeypatch.setenv(name, value)
    desk, agent = Desk(run), Thread(run)
    ticket = desk.open(1, "exit 0")
    assert (ticket.pod, ticket.uid, ticket.node) == ("example-worker-0", "1-2-3", "gpu-7")
    assert desk.ended(1) == [0]
    assert read_json(run.exits(1) / "node-0.json")["node"] == "gpu-7"
    run.update_run(state="completed")
    assert agent.join() == 0


def test_a_second_life_has_a_new_ticket_and_is_not_in_the_attempt_of_the_first(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(run)
    with process(run) as first:
        old = desk.open(1, "echo up; exec sleep 600")
        desk.up(1)
        first.kill()
    second = Thread(run)
    new = desk.new_ticket()
    assert new.ticket != old.ticket
    assert second.agent.node is None, "it waits, though the attempt of its first life is still the newest"
    desk.open(2, "exit 0", ticket=new)
    assert desk.ended(2) == [0]
    run.update_run(state="completed")
    assert second.join() == 0


def test_a_run_that_has_ended_lets_its_pods_go(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.update_run(state="completed")
    assert Thread(run).join() == 0, "at once: its master's exit code is the PyTorchJob's"
    monkeypatch.setattr(pod_agent, "ENDED_SECONDS", 0.05)
    for state in ("failed", "cancelled"):
        run.update_run(state=state)
        assert Thread(run, stopped_exit=143).join() == 93


def test_a_run_that_is_resumed_finds_its_pods_waiting(run: RunDir) -> None:
    """`resume` starts the pods and the supervisor at the same time."""
    run.update_run(state="failed", attempt=1)
    desk, agent = Desk(run), Thread(run)
    ticket = desk.new_ticket()
    run.update_run(state="pending")
    desk.open(2, "exit 0", ticket=ticket)
    desk.ended(2)
    run.update_run(state="completed")
    assert agent.join() == 0


@pytest.mark.parametrize("stopped", [75, 143])
def test_a_pod_whose_peers_do_not_come_gives_its_place_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    monkeypatch.setattr(pod_agent, "PEERS_SECONDS", 0.05)
    assert Thread(run, stopped_exit=stopped).join() == stopped


@pytest.mark.parametrize("stopped", [75, 143])
def test_a_pod_that_nobody_has_a_word_for_is_made_anew(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    monkeypatch.setattr(pod_agent, "WORD_SECONDS", 0.05)
    desk, agent = Desk(run), Thread(run, stopped_exit=stopped)
    desk.open(1, "exit 1")
    assert agent.join() == stopped


def test_an_attempt_that_is_given_up_has_its_workers_killed(run: RunDir) -> None:
    desk, agent = Desk(run), Thread(run)
    desk.open(1, "trap '' TERM; echo up; while :; do sleep 0.02; done", "exit 75")
    desk.up(1)
    Meeting(run).give_up(1)
    assert desk.ended(1) == [-9, 75]
    run.update_run(state="requeued")
    desk.open(2, "exit 0")
    assert desk.ended(2) == [0], "an older word does not kill the next attempt"
    run.update_run(state="completed")
    assert agent.join() == 0


def test_a_worker_that_failed_takes_the_others_of_its_node_along(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PEERS_GRACE_SECONDS", 0.05)
    desk, agent = Desk(run), Thread(run)
    desk.open(1, "exit 1", "exec sleep 600")
    assert desk.ended(1) == [1, -9]
    run.update_run(state="failed")
    assert agent.join() == 93


# --- told to leave: eviction, preemption, drain, Kueue
@pytest.mark.parametrize("stopped", [75, 143])
def test_told_to_leave_while_it_waits(run: RunDir, stopped: int) -> None:
    desk = Desk(run)
    with process(run, "--stopped-exit", str(stopped)) as agent:
        desk.new_ticket()
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == stopped


@pytest.mark.parametrize("stopped", [75, 143])
def test_told_to_leave_while_it_works(run: RunDir, stopped: int) -> None:
    """Its workers stop at a step's end, with a checkpoint; so do those of other nodes, who read it on the volume."""
    desk = Desk(run)
    with process(run, "--stopped-exit", str(stopped)) as agent:
        desk.open(1, STOPS, STOPS)
        desk.up(1, workers=2)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == stopped, "it waits for nobody's word"
        assert agent.stdout is not None
        output = agent.stdout.read()
    assert desk.ended(1) == [75, 75]
    assert (run.stop_reason(), read_json(run.stop)["attempt"]) == ("terminated", 1)
    assert "up\n" in output, "`kubectl logs` shows what the workers say"
    assert "attempt 1, node 0: the workers ended 75, 75" in output


def test_an_order_to_leave_does_not_change_a_reason_that_is_there(run: RunDir) -> None:
    desk = Desk(run)
    with process(run) as agent:
        desk.open(1, STOPS)
        desk.up(1)
        write_json(run.stop, {"reason": "cancelled"})
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == 75
    assert run.stop_reason() == "cancelled"


def test_told_to_leave_while_it_waits_for_a_word(run: RunDir) -> None:
    desk = Desk(run)
    with process(run, "--stopped-exit", "143") as agent:
        desk.open(1, "exit 1")
        desk.ended(1)
        assert agent.poll() is None
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == 143, "1 would end a PyTorchJob for good"


def test_told_to_leave_with_a_fault_that_a_restart_repeats(run: RunDir) -> None:
    desk = Desk(run)
    with process(run, "--stopped-exit", "143") as agent:
        desk.open(1, "trap 'exit 93' TERM; echo up; while :; do sleep 0.02; done")
        desk.up(1)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == 93


# --- the files
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"ticket": 1}', '{"attempt": "x", "tickets": []}', "\x00"])
def test_what_is_half_written_or_no_ticket_is_none(run: RunDir, text: str) -> None:
    meeting = Meeting(run)
    meeting.make()
    for name in ("node-0.json", "attempt.json", "given-up.json"):
        (meeting.directory / name).write_text(text)
    assert meeting.ticket(0) is None
    assert meeting.opened() is None
    assert not meeting.given_up(1)
    assert meeting.last_beat(0) == 0


def test_what_is_laid_down_is_read_back(run: RunDir) -> None:
    meeting = Meeting(run)
    meeting.make()
    tickets = tuple(Ticket(ticket=f"t{rank}", node=f"n{rank}", pod=f"p{rank}", uid=f"u{rank}") for rank in range(3))
    for rank, ticket in enumerate(tickets):
        meeting.lay(rank, ticket)
        assert meeting.ticket(rank) == ticket
    meeting.open(4, tickets)
    assert meeting.opened() == Opened(attempt=4, tickets=tickets)
    meeting.give_up(4)
    assert meeting.given_up(4) and not meeting.given_up(5)
    meeting.beat(0)
    assert meeting.last_beat(0) > 0
