"""The weights of the lowest evaluation loss, kept in RUN/best as `from_pretrained` loads them; and when to give up."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from fullft_cluster import checkpoints
from fullft_cluster.rundir import RunDir, read_json, write_json
from fullft_cluster.train import comm, export
from fullft_cluster.train.checkpointing import TrainerState
from fullft_cluster.train.evaluation import Evaluation
from fullft_cluster.train.setup import Job


def judge(state: TrainerState, evaluation: Evaluation, *, patience: int | None, threshold: float) -> TrainerState:
    """Return where training stands after an evaluation: the best loss so far, and whether it is over.

    As transformers' EarlyStoppingCallback counts: any lower loss is the best, but only one that is lower by more than
    the threshold (nats) is a reason to be patient
    (https://github.com/huggingface/transformers/blob/main/src/transformers/trainer_callback.py).
    """
    best = math.inf if state.best_loss is None else state.best_loss
    waited = 0 if evaluation.loss < best - threshold else state.evaluations_without_better + 1
    after = msgspec.structs.replace(state, evaluated_step=state.step, evaluations_without_better=waited)
    if evaluation.loss < best:
        after = msgspec.structs.replace(after, best_loss=evaluation.loss, best_step=state.step)
    if patience is not None and waited >= patience:
        better = f"loss that is lower by more than {threshold:g}" if threshold else "better loss"
        found = f"{waited} evaluation{'s' if waited > 1 else ''} without a {better}"
        words = f"early stopping: {found}; the best is {after.best_loss:.4f} of step {after.best_step}"
        after = msgspec.structs.replace(after, finished=words)
    return after


def keep_best(job: Job, state: TrainerState) -> None:
    """Make sure that RUN/best holds the best weights that are known (a collective).

    They are written from the committed checkpoint of their step, so a kill in between costs nothing: the next attempt
    calls this before its first step. What is there stands if its loss is as low: an older checkpoint was resumed.
    """
    if state.best_step is None or not job.config.output.save_best:
        return

    def write() -> None:
        assert state.best_step is not None and state.best_loss is not None
        found = marker(job.run)
        if found.get("step") != state.best_step:
            if found.get("eval_loss", math.inf) <= state.best_loss:
                return
            path = job.run.checkpoints / f"step-{state.best_step}"
            if not path.is_dir() or not checkpoints.inspect(path).good:
                print(f"best/ cannot be brought up to date: {path} is gone", flush=True)
                return
            checkpoints.attempt_fence(job.run, job.attempt)()
            export.export_checkpoint(job.run, path, job.run.best)
        elif "eval_loss" in found:
            return
        values = {**marker(job.run), "step": state.best_step, "eval_loss": state.best_loss}
        write_json(job.run.best / export.MARK, values)
        print(f"best/ holds the weights of step {state.best_step}, evaluation loss {state.best_loss:.4f}", flush=True)

    comm.on_rank_zero(write)


def marker(run: RunDir) -> dict[str, Any]:
    """Return what RUN/best says of itself: `step`, `eval_loss`; empty where there is none."""
    value = read_json(run.best / export.MARK)
    return value if isinstance(value, dict) else {}
