"""One rank that computes, under several engines one after another, what a test holds against plain torch.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python gradients_probe.py RUN [RUN ...]

A run whose name begins with `steps` is an engine that learns `STEPS` ragged batches; rank 0 writes RUN/found.pt.
One that begins with `poison` is trained by the worker's own code, with a gradient that is not finite in its third step;
RUN/said.json has what it said.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from fullft_cluster.rundir import RunDir
from fullft_cluster.train import comm, worker
from fullft_cluster.train import weights as weights_module
from fullft_cluster.train.data import IGNORE, Batch, rank_share
from fullft_cluster.train.engine import Engine, make_engine
from fullft_cluster.train.evaluation import Evaluator
from fullft_cluster.train.exits import NotFiniteError, Progress
from fullft_cluster.train.setup import Identity, Job, read_job, set_environment
from fullft_cluster.train.stop import StopFlag

STEPS, ROWS, LENGTH, VOCABULARY = 4, 8, 48, 512
LABELLED = (48, 3, 17, 40, 2, 9, 33, 5)
"""Tokens of each row that have a label, the first not counted: the shortest row has 2, the longest 48."""
EVALUATED_BEFORE = 2
"""The evaluation comes after so many steps, in the middle of training."""
HELD_OUT = 5
POISONED_STEP = 3


def ragged(seed: int, rows: int = ROWS) -> Batch:
    """Return a batch whose rows have unlike numbers of labels."""
    ids = np.random.RandomState(seed).randint(3, VOCABULARY, (rows, LENGTH)).astype(np.int64)
    labels = ids.copy()
    for row in range(rows):
        labels[row, LABELLED[row] :] = IGNORE
    labels[:, 0] = IGNORE
    return Batch(input_ids=ids, labels=labels, position_ids=np.tile(np.arange(LENGTH), (rows, 1)))


def part(batch: Batch, rows: Any) -> Batch:
    """Return some rows of a batch; -1 is a row of padding."""
    taken = {name: getattr(batch, name)[rows] for name in ("input_ids", "labels", "position_ids")}
    taken["labels"][rows < 0] = IGNORE
    return Batch(**taken)


class HeldOut:
    """A validation set of ragged rows."""

    def __init__(self) -> None:
        self._batch = ragged(99, HELD_OUT)

    def __len__(self) -> int:
        return HELD_OUT

    def labels_in(self, rows: Any) -> int:
        return int((self._batch.labels[rows[rows >= 0]] != IGNORE).sum())

    def batch(self, rows: Any) -> Batch:
        return part(self._batch, rows)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return the whole gradients of the step that is about to be taken (a collective)."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            found[name] = parameter.grad.full_tensor().clone()
        else:
            found[name] = safe_get_full_grad(parameter).clone()
    return found


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the whole fp32 weights (a collective)."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else safe_get_full_fp32_param(parameter)
        found[name] = whole.detach().clone()
    return found


def keep_gradients(engine: Any) -> list[dict[str, torch.Tensor]]:
    """Have the gradients of every step noted, right before the engine clips them; return the list that they go to."""
    noted: list[dict[str, torch.Tensor]] = []
    inner = getattr(engine, "_engine", None)
    step = inner.step if inner is not None else engine.step

    def noting(*args: Any, **options: Any) -> Any:
        if inner is None or inner.is_gradient_accumulation_boundary():
            noted.append(gradients(engine.model()))
        return step(*args, **options)

    (inner if inner is not None else engine).step = noting
    return noted


def evaluations(job: Job, engine: Engine) -> list[float]:
    """Return the loss of the same validation set by batches of 1, 2 and 3 rows."""
    losses = []
    for size in (1, 2, 3):
        plan = msgspec.structs.replace(job.plan, micro_batch_size=size, gradient_accumulation_steps=10**6)
        data: Any = HeldOut()
        found = Evaluator(replace(job, plan=plan), engine, data, StopFlag()).evaluate(1, lambda: None)
        assert found is not None
        losses.append(found.loss)
    return losses


def watched_engine(job: Job) -> tuple[Engine, list[int]]:
    """Return the engine, and how many numbers of the model each rank had in memory once it had loaded the weights."""
    right, seen = weights_module.make_model, []

    def make_model(*args: Any) -> Any:
        model = right(*args)
        seen.append(sum(parameter.numel() for parameter in model.parameters()))  # 0 of what zero.Init has dealt out
        return model

    weights_module.make_model = make_model
    try:
        engine = make_engine(job, torch.device("cpu"), STEPS)
    finally:
        weights_module.make_model = right
    return engine, [sum(of_rank) for of_rank in comm.on_every_rank(lambda: seen)]


def learn(job: Job) -> None:
    """Learn `STEPS` batches and write what happened."""
    engine, loaded = watched_engine(job)
    noted = keep_gradients(engine)
    found: dict[str, Any] = {"norms": [], "rates": [], "losses": []}
    for step in range(STEPS):
        if step == EVALUATED_BEFORE:
            found["evaluations"] = evaluations(job, engine)
        batch = ragged(step)
        labels = int((batch.labels != IGNORE).sum())
        share = rank_share(
            np.arange(ROWS), rank=job.identity.rank, world_size=2, micro_batch_size=job.plan.micro_batch_size
        )
        found["rates"].append(engine.learning_rate())
        loss = sum(engine.micro_step(part(batch, rows), labels) for rows in share)
        torch.distributed.all_reduce(loss)
        found["norms"].append(engine.step())
        found["losses"].append(float(loss) / labels)
    found["loaded"] = loaded
    found["gradients"], found["weights"] = noted, weights(engine.model())
    if job.identity.rank == 0:
        torch.save(found, job.run.path / "found.pt")


class Poison(torch.autograd.Function):
    """Passes a value on, and an infinite gradient back."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


def poison(job: Job) -> None:
    """Train with a loss that is finite throughout, and a gradient that is not: of one micro-batch, on one rank."""
    from fullft_cluster.train import deepspeed_engine, fsdp_engine

    module: Any = fsdp_engine if job.plan.engine == "fsdp" else deepspeed_engine
    right, calls = module.loss_of, []

    def wrong(*args: Any) -> torch.Tensor:
        calls.append(1)
        last = job.plan.gradient_accumulation_steps * POISONED_STEP
        loss: torch.Tensor = right(*args)
        return Poison.apply(loss) if job.identity.rank == 1 and len(calls) == last - 1 else loss

    module.loss_of = wrong
    progress = Progress()
    said = ""
    try:
        worker.train(job, StopFlag(), progress)
    except NotFiniteError as error:
        said = str(error)
    finally:
        module.loss_of = right
    rank = job.identity.rank
    (job.run.path / f"said-{rank}.json").write_text(json.dumps({"said": said, "committed": progress.committed_step}))


def main() -> None:
    identity = Identity.from_environment(os.environ)
    code = 0
    try:
        set_environment(os.environ, "cpu")
        jobs = [read_job(RunDir(Path(argument)), 1, identity) for argument in sys.argv[1:]]
        worker.start_process_group(jobs[0])
        # DeepSpeed's engines leave transformers believing that the next model is DeepSpeed's, too.
        for job in sorted(jobs, key=lambda job: job.plan.engine, reverse=True):
            (learn if job.run.name.startswith("steps") else poison)(job)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as the worker leaves


if __name__ == "__main__":
    main()
