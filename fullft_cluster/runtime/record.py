"""The record of an attempt's end: its line in attempts.jsonl, and what run.json keeps of the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from fullft_cluster.rundir import RunDir, append_line, read_lines
from fullft_cluster.runtime import evidence as gather
from fullft_cluster.runtime.policy import Decision, Evidence, History, WorkerExit


class Span(NamedTuple):
    """When and where an attempt ran. Times in Unix seconds."""

    started: float
    ended: float
    nodes: tuple[str, ...]


def conclude(run: RunDir, attempt: int, span: Span, evidence: Evidence, decision: Decision) -> None:
    """Append the line of an attempt."""
    steps = gather.steps(run, attempt, span.started)
    append_line(
        run.attempts,
        {
            "attempt": attempt,
            "start": round(span.started, 3),
            "end": round(span.ended, 3),
            "nodes": list(span.nodes),
            "cause": decision.cause,
            "decision": decision.action,
            "first_step": steps.first_step,
            "last_step": steps.last_step,
            "committed_step": evidence.committed_step,
            "seconds_lost": _lost(run, evidence.workers, span),
            "exit_codes": [worker.exit_code for worker in evidence.workers],
            "message": decision.message,
            "exclude_nodes": list(decision.exclude_nodes),
            "history": msgspec.to_builtins(decision.history),
        },
    )


def line_of(run: RunDir, attempt: int) -> dict[str, Any] | None:
    """Return the line of an attempt, None while it has none."""
    return next((line for line in read_lines(run.attempts) if line.get("attempt") == attempt), None)


def decision_of(line: Mapping[str, Any], state: Mapping[str, Any]) -> Decision:
    """Return the decision that a line tells of; ``state`` is run.json, for lines that do not have the history."""
    return Decision(
        action=line["decision"],
        cause=line["cause"],
        message=str(line.get("message", "")),
        exclude_nodes=tuple(line.get("exclude_nodes") or ()),
        history=msgspec.convert(line.get("history") or state.get("history", {}), History),
    )


def remember(run: RunDir, decision: Decision) -> None:
    """Keep in run.json what the next attempt has to know."""
    state = run.read_run()
    excluded = sorted({*state.get("excluded_nodes", ()), *decision.exclude_nodes})
    changes: dict[str, Any] = {"history": msgspec.to_builtins(decision.history), "excluded_nodes": excluded}
    if decision.action.startswith("requeue"):
        changes |= {"state": "requeued", "reason": decision.cause, "restarts": state.get("restarts", 0) + 1}
    run.update_run(**changes)


def final_state(decision: Decision) -> str:
    """Return the state of a run that ends with this decision."""
    if decision.action == "done":
        return "completed"
    return "cancelled" if decision.cause == "cancelled" else "failed"


def _lost(run: RunDir, workers: tuple[WorkerExit, ...], span: Span) -> float:
    """Return the seconds of work that are repeated: none after an agreed stop or the end of training."""
    if workers and all(worker.exit_code in (0, 75) for worker in workers):
        return 0.0
    return gather.seconds_lost(run, span.started, span.ended)
