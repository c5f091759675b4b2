"""Gathers what an attempt left behind in the run directory: exit codes, reports, steps, committed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import RunDir, read_json, read_lines
from fullft_cluster.runtime.policy import WorkerExit


class Steps(Frozen, frozen=True):
    """How far an attempt came."""

    resumed_from: int | None
    first_step: int | None
    last_step: int | None


def report(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty when it is missing, torn by a power loss, or no object."""
    try:
        value = read_json(path)
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def worker_exits(run: RunDir, attempt: int, nodes: tuple[str, ...], local_world_size: int) -> tuple[WorkerExit, ...]:
    """Return how each worker of an attempt ended, from the node starters' and the workers' own reports.

    A worker that nobody saw end (its node is lost) has no exit code. Reports of other attempts are not looked at.
    """
    directory = run.exits(attempt)
    exits = []
    for node_rank, node in enumerate(nodes):
        ended = report(directory / f"node-{node_rank}.json")
        codes: list[int] = ended.get("exit_codes", [])
        for local_rank in range(local_world_size):
            rank = node_rank * local_world_size + local_rank
            own = report(directory / f"rank-{rank}.json")
            code = codes[local_rank] if local_rank < len(codes) else own.get("exit_code")
            exits.append(
                WorkerExit(
                    rank=rank,
                    node=str(ended.get("node", node)),
                    exit_code=code,
                    kind=own.get("kind"),
                    message=str(own.get("message") or ""),
                    step=own.get("step"),
                )
            )
    return tuple(exits)


def steps(run: RunDir, attempt: int, started: float) -> Steps:
    """Return the steps of an attempt from its lines in metrics.jsonl, its workers' reports and its heartbeats."""
    lines = [line for line in read_lines(run.metrics) if line.get("attempt") == attempt and "eval_loss" not in line]
    logged = [line["step"] for line in lines if "step" in line]
    reports = [report(path) for path in sorted(run.exits(attempt).glob("rank-*.json"))]
    resumed = [own["resumed_from"] for own in reports if own.get("resumed_from") is not None]
    beats = [beat["step"] for beat in heartbeats(run) if beat["time"] >= started and beat.get("phase") != "load"]
    last = max([*logged, *beats], default=None)
    resumed_from = min(resumed, default=None)
    first = min(logged, default=None)
    if reports:  # they know better than the log, which may skip steps (output.log_steps)
        before = resumed_from or 0
        first = before + 1 if last is not None and last > before else None
    return Steps(resumed_from=resumed_from, first_step=first, last_step=last)


def heartbeats(run: RunDir) -> list[dict[str, Any]]:
    """Return the newest heartbeat of each rank; one that a power loss has torn is passed over."""
    beats = [report(path) for path in sorted(run.heartbeats.glob("rank-*.json"))]
    return [beat for beat in beats if "step" in beat and "time" in beat]


def committed(run: RunDir) -> list[tuple[int, float]]:
    """Return (step, time of the commit) of each checkpoint that has its COMPLETE, oldest first.

    Digests are not read: resume verifies them before it trusts one.
    """
    found = []
    for marker in run.checkpoints.glob("step-*/COMPLETE"):
        number = marker.parent.name.removeprefix("step-")
        if number.isdigit():
            found.append((int(number), _mtime(marker)))
    return sorted(found)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # retention removed it between glob and stat
        return 0.0


def newest_committed_step(run: RunDir) -> int | None:
    """Return the step of the newest committed checkpoint, or None."""
    found = committed(run)
    return found[-1][0] if found else None


def seconds_lost(run: RunDir, started: float, ended: float) -> float:
    """Return the seconds of work since the attempt's last commit (or its start), which the next attempt repeats.

    The time to start up counts when nothing was committed: it is spent again as well.
    """
    commits = [when for _, when in committed(run) if when >= started]
    return round(max(0.0, ended - max(commits, default=started)), 1)
