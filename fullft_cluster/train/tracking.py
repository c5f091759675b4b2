"""Where metrics go besides metrics.jsonl: TensorBoard's event files, and Weights & Biases. Rank 0 alone.

A step that is trained again after a kill shows once. TensorBoard is told from where on an attempt goes on, and hides
what it has of later steps (`purge_step`). W&B cannot take back what it has, so what an earlier attempt has logged is
not logged again; its figures are the same but for rounding.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.rundir import RunDir, read_json, read_lines, write_json
from fullft_cluster.train.setup import Job

START_SECONDS = 30.0
"""How long W&B is waited for before the run is kept offline; its own default is 90 s, in which the GPUs stand still."""
CLOSE_SECONDS = 30.0
"""How long the end of training waits for W&B's upload; `wandb sync` uploads what is left of it from RUN/wandb."""
_STEP = "train/global_step"
_BOOKKEEPING = ("step", "total_steps", "attempt", "time")


class Tracker(Protocol):
    """A place where metrics go. Any method may raise; `Trackers` lives on without it then."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take some numbers of a step, by names such as ``train/loss``."""

    def flush(self) -> None:
        """Make what was logged durable, where that is not done anyway."""

    def close(self) -> None:
        """Finish what is written."""


def check_installed(config: Config) -> None:
    """Raise UsageError for each place in output.report_to whose package is missing."""
    wanted = [name for name in config.output.report_to if importlib.util.find_spec(name) is None]
    fix = "Install it where the run trains: pip install 'fullft-cluster[tracking]', or leave it out."
    if wanted:
        raise UsageError([Problem("output.report_to", f"the package {name} is not installed", fix) for name in wanted])


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl by the names that they have elsewhere: train/loss, eval/loss."""
    kind = "eval" if "eval_loss" in line else "train"
    found = {key.removeprefix("eval_"): value for key, value in line.items() if key not in _BOOKKEEPING}
    return {f"{kind}/{key}": float(value) for key, value in found.items() if isinstance(value, int | float)}


class Trackers:
    """All places of a run. One that fails is said once and left out: no tracker ever ends a training."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}

    def start(self, job: Job, first_step: int) -> None:
        """Open all places that output.report_to names; `first_step` steps are done."""
        for name in job.config.output.report_to:
            self._guard(name, partial(self._open, name, job, first_step))

    def _open(self, name: str, job: Job, first_step: int) -> None:
        makers: dict[str, Callable[[Job, int], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}
        self._trackers[name] = makers[name](job, first_step)

    def log(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, partial(tracker.log, int(line["step"]), numbers(line)))

    def flush(self) -> None:
        """Make what was logged durable."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.flush)

    def close(self) -> None:
        """Finish what is written, and wait for it no longer than `CLOSE_SECONDS`."""
        for name, tracker in list(self._trackers.items()):
            # A daemon, so that a network that does not answer keeps nothing up.
            thread = threading.Thread(target=self._guard, args=(name, tracker.close), daemon=True)
            thread.start()
            thread.join(CLOSE_SECONDS)
        self._trackers.clear()

    def _guard(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._trackers.pop(name, None)
            print(f"{name} takes no more metrics ({type(error).__name__}: {error}); training goes on", flush=True)


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, job: Job, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # https://pytorch.org/docs/stable/tensorboard.html: events of purge_step and later are hidden.
        self._writer = SummaryWriter(str(job.run.tensorboard), purge_step=first_step + 1 if job.attempt > 1 else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One run at W&B over all attempts; the API key is read by wandb itself, from the environment."""

    def __init__(self, job: Job, first_step: int) -> None:
        self._seen = logged_before(job.run, job.attempt)
        self._run = self._start(job)
        if not getattr(self._run, "offline", True):
            print(f"W&B: {self._run.url}", flush=True)
        # The step is a number among the others, as transformers has it: W&B's own only ever grows.
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)

    def _start(self, job: Job) -> Any:
        import wandb

        config = {key: msgspec.to_builtins(getattr(job.config, key)) for key in ("model", "data", "train", "resources")}
        options = {
            "project": os.environ.get("WANDB_PROJECT", "fullft-cluster"), "id": wandb_id(job.run), "resume": "allow",
            "name": job.run.name, "dir": str(job.run.path), "config": config,
            # The workers' output has a log of its own, and no place for a summary of many lines.
            "settings": wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, init_timeout=START_SECONDS
            ),
        }  # fmt: skip
        try:
            return wandb.init(**options)
        except Exception as error:  # no network, no key, a server that is down
            first = str(error).strip().split("\n", 1)[0]
            print(
                f"W&B cannot be reached ({first}); the run is kept for `wandb sync` in {job.run.path}/wandb", flush=True
            )
            wandb.teardown()  # its process would say that the id is in use
            return wandb.init(**options, mode="offline")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        kinds = {name.partition("/")[0] for name in values}
        if all(step > self._seen.get(kind, 0) for kind in kinds):
            self._run.log({_STEP: step, **values})

    def flush(self) -> None:
        """Do nothing: its own process writes what it gets."""

    def close(self) -> None:
        import wandb

        self._run.finish()
        wandb.teardown()


def wandb_id(run: RunDir) -> str:
    """Return the run's id at W&B: made once, and kept in the run directory over requeues."""
    found = read_json(run.wandb_run)
    if not found:
        found = {"id": uuid.uuid4().hex[:12]}
        write_json(run.wandb_run, found)
    return str(found["id"])


def logged_before(run: RunDir, attempt: int) -> dict[str, int]:
    """Return the last step that an earlier attempt has written to metrics.jsonl, of `train` and of `eval` lines."""
    last: dict[str, int] = {}
    for line in read_lines(run.metrics):
        if line.get("attempt", attempt) < attempt:
            kind = "eval" if "eval_loss" in line else "train"
            last[kind] = max(last.get(kind, 0), int(line["step"]))
    return last
