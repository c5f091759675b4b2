"""The status of a run in a cluster: what its supervisor published, held against what is there now. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from fullft_cluster.backends.kubernetes_jobs import end_of, queued
from fullft_cluster.backends.kubernetes_objects import makers
from fullft_cluster.backends.kubernetes_pods import first_of, pod_problems, short_name
from fullft_cluster.backends.kubernetes_view import View, seconds
from fullft_cluster.kubernetes_api import Json
from fullft_cluster.plan import Plan
from fullft_cluster.runtime.pod_state import queue_of, suspended
from fullft_cluster.status import ENDED, STOPPING, State, Status

MOST_REASONS = 3
GRACE_SECONDS = 30.0
"""How long a supervisor may be without a pod before that is worth a word: Jobs make pods in a moment."""


def kubernetes_status(view: View, now: float | None = None) -> Status:
    """Return what a run is doing."""
    moment = time.time() if now is None else now
    status = _published(view)
    state, reason = _judged(view, replace(status, reason=_first_error(status.reason, view.name)), moment)
    running = state == "running"
    beat = status.heartbeat_age_seconds
    if beat is not None and view.state_time is not None:
        beat = round(beat + max(0.0, moment - view.state_time), 1)
    return replace(
        status,
        state=state,
        reason=reason,
        nodes=sorted({str(pod["spec"]["nodeName"]) for pod in view.of("worker") if is_running(pod)}) if running else [],
        phase=status.phase if running else None,
        eta_seconds=status.eta_seconds if running else None,
        heartbeat_age_seconds=beat,
    )


def _published(view: View) -> Status:
    """Return the last status that the supervisor published; what is known without one before it did."""
    config = view.config
    kind = config.kubernetes.kind if config is not None else "job"
    run_dir = f"{config.output.runs_dir}/{view.name}" if config is not None else ""
    known: dict[str, Any] = {"name": view.name, "backend": "kubernetes", "job_id": f"{kind}/{view.name}"}
    known["prepare_job_id"] = f"job/{view.names.prepare}"
    try:
        published = msgspec.json.decode(view.state["status.json"], type=Status)
        return replace(published, **known)
    except (KeyError, msgspec.MsgspecError):
        run = view.json("run.json")
        return Status(
            **known,
            run_dir=run_dir,
            state=run.get("state", "preparing"),
            reason=str(run.get("reason", "")),
            attempt=int(run.get("attempt", 0)),
            restarts=int(run.get("restarts", 0)),
            nodes=[],
            phase=None,
            step=None,
            total_steps=_steps(view),
            loss=None,
            learning_rate=None,
            tokens_per_second=None,
            mfu=None,
            eta_seconds=None,
            last_checkpoint_step=None,
            heartbeat_age_seconds=None,
            export=None,
            attempts=view.attempts,
        )


def _first_error(reason: str, name: str) -> str:
    """Return a published reason as one line: of several errors, one a line, the first and where the others are."""
    told = first_of(reason.splitlines())
    return f"{told}; `logs {name} --backend kubernetes` shows all" if "\n" in reason.strip() else told


def _steps(view: View) -> int | None:
    try:
        return Plan.from_json(view.files["plan.json"].encode()).time.total_steps
    except (KeyError, ValueError):
        return None


def _judged(view: View, status: Status, now: float) -> tuple[State, str]:
    """Return the run's state now and the reason for it."""
    asked = request_of(view)
    if asked == "cancel" and view.training is None:
        return "cancelled", "cancelled by the user"
    if status.state in ENDED and asked != "resume":
        return status.state, status.reason
    wish = {"cancel": "asked to stop after a checkpoint", "resume": "resumed"}.get(asked or "", "")
    if prepared := _preparing(view):
        return prepared
    if view.training is None:
        what = "its training object is gone, and nobody asked for that. `resume` makes it anew"
        return ("pending", wish) if asked == "resume" else ("failed", what)
    again: State = "requeued" if status.attempt else "pending"
    said = "" if asked == "resume" else status.reason  # of an end that is over
    wish = "" if asked == "cancel" and said.startswith(STOPPING) else wish  # it is being done
    if queue_of(view.training) and suspended(view.training):
        return again, _joined([wish, queued(view.training, view.workloads)])
    problems = [*_waiting(view, view.training), *_supervisor(view, now)]
    end, words = end_of(view.training)
    if end is not None:
        return _after_the_end(view, end, words, problems)
    workers = view.of("worker")
    if workers and all(is_running(pod) for pod in workers):
        if not status.attempt and status.state in ("preparing", "pending"):
            return "pending", _joined([wish, *(problems or ["its pods have started, and its first attempt soon does"])])
        state: State = "running" if status.state in ENDED | {"preparing", "pending"} else status.state
        return state, _joined([wish, said if status.state == state else "", *problems])
    if suspended(view.training):
        what = "its supervisor makes the pods anew" if status.attempt else "its supervisor starts the pods in a moment"
        return again, _joined([wish, *(problems or [what])])
    return again, _joined([wish, said if status.attempt else "", *(problems or ["its pods are starting"])])


def request_of(view: View) -> str | None:
    """Return what the run was asked for and has not answered yet: ``cancel``, ``resume`` or None."""
    request = view.json("request")
    if not request or request.get("id") == view.state.get("honoured"):
        return None
    return str(request.get("action"))


def _preparing(view: View) -> tuple[State, str] | None:
    """Return the state while the data is prepared, or after that failed; None once it is done."""
    if view.prepare is None:
        return None
    end, words = end_of(view.prepare)
    if end == "completed":
        return None
    pods = view.of("prepare")
    problems = list(_problems(view, pods))
    if end == "failed":
        told = _joined(problems) or words
        return "failed", f"data preparation: {told}. `logs {view.name} --backend kubernetes` shows it"
    if queue_of(view.prepare) and suspended(view.prepare):
        return "pending", f"data preparation {queued(view.prepare, view.workloads)}"
    refused = list(_refused(view, view.names.prepare)) if not pods else []
    return "preparing", _joined(["data preparation", *problems, *refused])


def _after_the_end(view: View, end: str, words: str, problems: list[str]) -> tuple[State, str]:
    """Return the state once the training object has ended and the supervisor has not said so: in a moment it will."""
    if any(is_running(pod) for pod in view.of("supervisor")):
        return "running", f"the {_kind(view)} has ended ({end}); its supervisor settles it"
    if end == "completed":
        return "completed", _joined([f"the {_kind(view)} has completed", *problems])
    return "failed", _joined([f"the {_kind(view)} has failed: {words}", *problems])


def _kind(view: View) -> str:
    return str(view.training["kind"]) if view.training else "job"


def _waiting(view: View, training: Json) -> Iterator[str]:
    """Yield what keeps the workers from running."""
    workers = view.of("worker")
    yield from _problems(view, workers)
    if not workers:
        yield from _refused(view, training["metadata"]["name"])


def _refused(view: View, name: str) -> Iterator[str]:
    """Yield why a controller cannot make the pods of an object: a quota, an admission policy."""
    for event in view.warnings:
        about = (event.get("involvedObject") or {}).get("name", "")
        if event.get("reason") in ("FailedCreate", "FailedCreatePod") and about in makers(name):
            words = " ".join(str(event.get("message", "")).split())
            cut = words.find("exceeded quota")
            yield f"its pods are refused: {words[cut:] if cut >= 0 else words}"
            return


def _problems(view: View, pods: list[Json]) -> Iterator[str]:
    """Yield the problems of pods, those of several pods once, with whose they are."""
    told: dict[str, list[str]] = {}
    for pod in pods:
        uid = pod["metadata"].get("uid")
        about = [event for event in view.warnings if (event.get("involvedObject") or {}).get("uid") == uid]
        for problem in pod_problems(pod, about):
            told.setdefault(problem, []).append(short_name(pod["metadata"]["name"], view.name))
    for problem, every in told.items():
        names = list(dict.fromkeys(every))
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{few}{f' ({len(every)} times)' if len(every) > len(names) else ''}: {problem}"


def _supervisor(view: View, now: float) -> Iterator[str]:
    """Yield what is wrong with the supervisor: without one nobody restarts a failed attempt."""
    pods = view.of("supervisor")
    if any(is_running(pod) for pod in pods):
        return
    yield from _problems(view, pods)
    if view.supervisor is None:
        yield "it has no supervisor, so a failed attempt is not followed by another: `resume` starts one"
        return
    end, words = end_of(view.supervisor)
    if end == "failed":
        yield f"its supervisor has failed ({words}): `resume` starts another"
    elif (
        end is None and not pods and now - seconds(view.supervisor["metadata"].get("creationTimestamp")) > GRACE_SECONDS
    ):
        yield _joined(["its supervisor has no pod", *_refused(view, view.names.supervisor)])


def is_running(pod: Json) -> bool:
    """Return whether a pod runs and is not told to go; that of a dead node is told to go for ever."""
    return pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def _joined(parts: list[str]) -> str:
    told = list(dict.fromkeys(part for part in parts if part))
    more = f"; and {len(told) - MOST_REASONS} more" if len(told) > MOST_REASONS + 1 else ""
    return "; ".join(told[: MOST_REASONS + 1] if not more else told[:MOST_REASONS]) + more
