"""The policy of ends: every rule, and that none of them loops for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.runtime.policy import (
    REQUESTED,
    SCHEDULER_CAUSES,
    Decision,
    Evidence,
    History,
    WorkerExit,
    decide,
    node_exit_code,
    root_of,
)


def workers(*codes: int | None, kinds: tuple[str | None, ...] = (), step: int | None = 7) -> tuple[WorkerExit, ...]:
    kinds = kinds or (None,) * len(codes)
    return tuple(
        WorkerExit(rank=rank, node=f"node{rank // 2 + 1}", exit_code=code, kind=kind, message="words", step=step)
        for rank, (code, kind) in enumerate(zip(codes, kinds, strict=True))
    )


def end(
    codes: tuple[int | None, ...], history: History | None = None, max_failures: int = 3, **more: object
) -> Decision:
    kinds = more.pop("kinds", ())
    return decide(Evidence(workers=workers(*codes, kinds=kinds), **more), history or History(), max_failures)  # type: ignore[arg-type]


def test_all_zero_is_done() -> None:
    assert (end((0, 0)).action, end((0, 0)).cause) == ("done", "done")


def test_done_wins_over_a_late_warning() -> None:
    assert end((0, 0), stop_reason="time_limit").action == "done"


@pytest.mark.parametrize("reason", sorted(REQUESTED))
def test_stopped_on_request_is_requeued_with_its_reason(reason: str) -> None:
    decision = end((75, 75), stop_reason=reason, started_from_step=None, committed_step=5)
    assert (decision.action, decision.cause, decision.history.failures) == ("requeue", reason, 0)


def test_cancel_stops_even_with_a_committed_checkpoint() -> None:
    assert end((75, 75), stop_reason="cancelled").action == "stop"
    assert end((-9, -9), scheduler_state="CANCELLED").cause == "cancelled"


@pytest.mark.parametrize("kind", ["config", "data", "checkpoint", "nan", "fenced"])
def test_93_stops_with_the_workers_own_kind(kind: str) -> None:
    decision = end((1, 93), kinds=("communication", kind))
    assert (decision.action, decision.cause) == ("stop", kind)
    assert "rank 1 on node1" in decision.message


def test_93_wins_over_a_lost_node() -> None:
    assert end((93, None), kinds=("config", None), bad_nodes=("node2",)).action == "stop"


def test_a_lost_node_is_excluded_and_not_counted() -> None:
    decision = end((1, 1, None, None), bad_nodes=("node2",), history=History(failures=2))
    assert decision.action == "requeue_without_node"
    assert decision.cause == "node_fail"
    assert decision.exclude_nodes == ("node2",)
    assert decision.history.failures == 2


def test_a_drained_node_does_not_hide_an_agreed_stop() -> None:
    decision = end((75, 75), bad_nodes=("node1",), stop_reason="time_limit", committed_step=9)
    assert (decision.action, decision.cause) == ("requeue", "time_limit")


def test_scheduler_says_node_fail_without_a_name() -> None:
    decision = end((None, None), scheduler_state="NODE_FAIL")
    assert (decision.action, decision.cause, decision.exclude_nodes) == ("requeue_without_node", "node_fail", ())


@pytest.mark.parametrize(
    ("state", "cause"), [("PREEMPTED", "preempted"), ("REQUEUED", "operator_requeue"), ("TIMEOUT", "time_limit")]
)
def test_the_scheduler_explains_killed_workers(state: str, cause: str) -> None:
    decision = end((-9, -15), scheduler_state=state, committed_step=3)
    assert (decision.action, decision.cause) == ("requeue", cause)


def test_the_warning_is_finer_than_the_state_after_our_own_requeue() -> None:
    assert end((75, 75), scheduler_state="REQUEUED", stop_reason="preempted", committed_step=3).cause == "preempted"


def test_a_time_limit_without_progress_is_a_failure_and_ends() -> None:
    history, decisions = History(), []
    for _ in range(4):
        decisions.append(end((75, 75), history, stop_reason="time_limit", started_from_step=5, committed_step=5))
        history = decisions[-1].history
    assert [d.action for d in decisions] == ["requeue", "requeue", "requeue", "stop"]
    assert decisions[-1].cause == "time_limit"


def test_failures_in_a_row_end_and_progress_forgives() -> None:
    history = History(failures=3)
    assert end((1, 1), history, kinds=("other", "communication")).action == "stop"
    forgiven = end((1, 1), history, kinds=("other", "communication"), started_from_step=4, committed_step=9)
    assert (forgiven.action, forgiven.history.failures) == ("requeue", 1)


def test_out_of_memory_at_the_same_step_is_not_tried_a_third_time() -> None:
    first = end((1, 1), kinds=("oom", "communication"))
    assert (first.action, first.cause, first.history.oom_step) == ("requeue", "oom", 7)
    second = end((1, 1), first.history, kinds=("oom", "communication"))
    assert second.action == "stop"
    assert "micro_batch_size" in second.message
    elsewhere = decide(Evidence(workers=workers(1, 1, kinds=("oom", None), step=8)), first.history, 3)
    assert elsewhere.action == "requeue"


def test_hang() -> None:
    assert end((-9, -9), hung=True).cause == "hang"


def test_the_root_is_the_fault_and_not_its_echo() -> None:
    root = root_of(workers(1, 1, -9, 1, kinds=("communication", "communication", None, "communication")))
    assert root is not None and root.rank == 2
    root = root_of(workers(1, 1, kinds=("communication", "oom")))
    assert root is not None and root.rank == 1
    assert root_of(workers(0, 75)) is None


def test_workers_that_were_never_started_point_to_the_launcher() -> None:
    """srun: Task launch failed on node node2: Communication connection failure."""
    decision = end((None, None), launcher_exit=233)
    assert (decision.action, decision.cause) == ("requeue", "crash")
    assert "233" in decision.message and "supervisor.log" in decision.message


def test_nobody_saw_the_end() -> None:
    assert end(()).cause == "crash"
    assert "nobody saw" in end((None,)).message


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([75, 1], 1), ([-9, 75], 1), ([-9, 93], 93), ([], 0)],
)
def test_node_exit_code(codes: list[int], expected: int) -> None:
    assert node_exit_code(codes) == expected


exit_codes = st.sampled_from([0, 1, 75, 93, -6, -9, -15, None])
evidences = st.builds(
    Evidence,
    workers=st.lists(
        st.builds(
            WorkerExit,
            rank=st.integers(0, 7),
            node=st.just("n"),
            exit_code=exit_codes,
            kind=st.sampled_from([None, "oom", "data", "communication", "other", "stopped", "done"]),
            step=st.integers(0, 5),
        ),
        max_size=4,
    ).map(tuple),
    stop_reason=st.sampled_from([None, "cancelled", *sorted(REQUESTED)]),
    scheduler_state=st.sampled_from([None, "RUNNING", *SCHEDULER_CAUSES]),
    hung=st.booleans(),
    started_from_step=st.just(4),
    committed_step=st.just(4),
)


@given(evidences, st.integers(0, 4))
def test_a_failure_without_progress_never_loops(evidence: Evidence, max_failures: int) -> None:
    """Whatever the same failure looks like, it is given up after max_failures + 1 times; nobody's fault is not."""
    history = History()
    for _ in range(max_failures + 1):
        decision = decide(evidence, history, max_failures)
        history = decision.history
        if decision.action in ("done", "stop"):
            return
    assert decision.cause in REQUESTED - {"time_limit"} | {"node_fail"}


@given(evidences)
def test_done_only_when_every_worker_is(evidence: Evidence) -> None:
    if decide(evidence, History(), 3).action == "done":
        assert {worker.exit_code for worker in evidence.workers} == {0}
