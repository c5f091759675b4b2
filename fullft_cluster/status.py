"""The noun Status: what a run is doing, from its directory and from what the scheduler says of its jobs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.rundir import RunDir, read_lines
from fullft_cluster.runtime import evidence
from fullft_cluster.slurm_cli import FINAL_STATES, JobState

State = Literal["preparing", "pending", "running", "requeued", "completed", "failed", "cancelled", "unknown"]
SupervisorState = Literal["alive", "gone", "elsewhere"]
"""Of a local run: on this host, nowhere, or on a host that cannot be asked from here."""
ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
STOPPING = "stopping after a checkpoint"
"""How the reason of a run begins that has heard of its stop."""


class Status(Frozen, frozen=True):
    """One run now. Keys are stable: `status --json` prints them."""

    name: str
    run_dir: str
    backend: str
    state: State
    reason: str
    job_id: str | None
    prepare_job_id: str | None
    attempt: int
    restarts: int
    nodes: list[str]
    phase: str | None
    """What the workers do while the run is running: load, train, evaluate, save or export."""
    step: int | None
    total_steps: int | None
    loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    mfu: float | None
    eta_seconds: float | None
    last_checkpoint_step: int | None
    heartbeat_age_seconds: float | None
    export: str | None
    """Directory that from_pretrained loads, once it is there."""
    attempts: list[dict[str, Any]]
    """The lines of attempts.jsonl."""
    eval_loss: float | None = None
    """Of the last evaluation, nats."""
    best_eval_loss: float | None = None
    best_step: int | None = None
    """Of the lowest evaluation loss."""
    best: str | None = None
    """Directory of the weights of the best step, as from_pretrained loads them."""


Live = Mapping[str, JobState]
"""What the scheduler says, by job id; empty where it was not asked or does not know."""


def read_status(run: RunDir, live: Live, *, supervisor: SupervisorState = "alive", now: float | None = None) -> Status:
    """Return the status of a run directory; unknown parts of a young or half-written run are None."""
    state = run.read_run()
    attempts = list(read_lines(run.attempts))
    trained, evaluated = _metrics(run)
    last, evaluation = (lines[-1] if lines else {} for lines in (trained, evaluated))
    best = min(evaluated, key=lambda line: float(line["eval_loss"]), default={})
    total = last.get("total_steps") or state.get("total_steps") or _planned_steps(run)
    name, reason = _state(run, state, live, supervisor)
    if name == "running" and run.stop_reason() is not None:
        reason = f"{STOPPING}: {run.stop_reason()}"
    running = name == "running"
    heartbeats = [beat for beat in evidence.heartbeats(run) if running]
    newest = max(heartbeats, key=lambda beat: float(beat["time"]), default={})
    young = newest.get("time", 0.0) < state.get("attempt_started", 0.0)  # the beats are those of the attempt before
    phase = ("load" if young else newest.get("phase")) if running else None
    step = last.get("step")
    job_id, prepare_job_id = _job_ids(run, state)
    # While an attempt loads, speed and time left are those of the one before: not shown as if they were live.
    live_figures = last if not running or last.get("attempt") == state.get("attempt") else {}
    moment = time.time() if now is None else now
    return Status(
        name=run.name,
        run_dir=str(run.path),
        backend=str(state.get("backend", "unknown")),
        state=name,
        reason=reason,
        job_id=job_id,
        prepare_job_id=prepare_job_id,
        attempt=state.get("attempt", 0),
        restarts=state.get("restarts", 0),
        nodes=list(state.get("nodes", ())) if running else [],
        phase=phase,
        step=step,
        total_steps=total,
        loss=last.get("loss"),
        learning_rate=last.get("lr"),
        tokens_per_second=live_figures.get("tokens_per_second"),
        mfu=live_figures.get("mfu"),
        eta_seconds=live_figures.get("eta_seconds") if running else None,
        eval_loss=evaluation.get("eval_loss"),
        best_eval_loss=best.get("eval_loss"),
        best_step=best.get("step"),
        best=str(run.best) if (run.best / "config.json").is_file() else None,
        last_checkpoint_step=evidence.newest_committed_step(run),
        heartbeat_age_seconds=round(moment - newest["time"], 1) if newest else None,
        export=str(run.export) if (run.export / "config.json").is_file() else None,
        attempts=attempts,
    )


def _job_ids(run: RunDir, state: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what the scheduler calls the training and its preparation; on Kubernetes their names follow the run's."""
    if state.get("backend") != "kubernetes":
        return state.get("job_id"), state.get("prepare_job_id")
    try:
        kind = msgspec.yaml.decode(run.config.read_bytes(), type=Config).kubernetes.kind
    except (OSError, msgspec.MsgspecError):  # of another version
        kind = "job"
    return f"{kind}/{run.name}", f"job/{run.name}-prepare"


def _state(run: RunDir, state: Mapping[str, Any], live: Live, supervisor: SupervisorState) -> tuple[State, str]:
    """Return the run's state and the reason for it."""
    recorded: State = state.get("state", "unknown")
    reason = str(state.get("reason", ""))
    if recorded in ENDED:
        return recorded, reason
    if state.get("backend") == "local":
        if recorded in ("running", "requeued") and supervisor == "elsewhere":
            return recorded, f"on {state.get('host')}, which cannot be asked from here"
        if recorded in ("running", "requeued") and supervisor == "gone":
            return (
                "failed",
                "its supervisor is gone (killed, or the machine restarted). `fullft-cluster resume` goes on.",
            )
        return recorded, reason
    if recorded in ("running", "requeued", "pending", "preparing") and state.get("job_id"):
        return _slurm_state(run, state, live)
    return recorded, reason


def _slurm_state(run: RunDir, state: Mapping[str, Any], live: Live) -> tuple[State, str]:
    job = live.get(str(state["job_id"]))
    prepare = live.get(str(state.get("prepare_job_id")))
    if prepare is not None and prepare.state in FINAL_STATES - {"COMPLETED"}:
        errors = prepare_errors(run)
        if prepare.state == "CANCELLED" and not errors:
            return "cancelled", "the preparation job was cancelled"
        words = "; ".join(errors) or f"the job ended {prepare.state}; see {run.logs / 'prepare'}"
        return "failed", f"data preparation: {words}"
    if job is None:
        return state.get("state", "unknown"), "the scheduler does not answer, or no longer knows the job"
    if job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        if state.get("attempt"):
            return "requeued", f"{state.get('reason') or 'requeued by SLURM'}; waiting: {job.reason or job.state}"
        # The reason Dependency comes a moment after the submit; the preparation job is there at once.
        waiting = job.reason == "Dependency" or (prepare is not None and prepare.state != "COMPLETED")
        return ("preparing", "data preparation") if waiting else ("pending", job.reason)
    if job.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"):
        return "running", "" if job.state == "RUNNING" else job.state
    if job.state == "CANCELLED":
        return "cancelled", "the job was cancelled in SLURM"
    return "failed", f"the job ended {job.state} in SLURM"


def prepare_errors(run: RunDir) -> list[str]:
    """Return what the data preparation found wrong, in its own words; empty when it said nothing."""
    report = evidence.report(run.path / "exits" / "prepare.json")
    return [str(error) for error in report.get("errors", ())]


def _metrics(run: RunDir) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl: (those of training, those of evaluations)."""
    lines = list(read_lines(run.metrics))
    evaluated = [line for line in lines if "eval_loss" in line]
    return [line for line in lines if "eval_loss" not in line], evaluated


def _planned_steps(run: RunDir) -> int | None:
    try:
        return Plan.from_json(run.plan.read_bytes()).time.total_steps
    except (FileNotFoundError, ValueError):
        return None
