"""The training loop: one optimizer step after another, an agreement after each, a checkpoint when it is due."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch

from fullft_cluster.errors import Problem
from fullft_cluster.train import checkpointing, comm
from fullft_cluster.train.best import judge, keep_best
from fullft_cluster.train.checkpointing import TrainerState
from fullft_cluster.train.data import Ints, Order, PackedData, PreparedData, rank_share
from fullft_cluster.train.engine import Engine
from fullft_cluster.train.evaluation import Evaluator
from fullft_cluster.train.exits import NotFiniteError, Progress
from fullft_cluster.train.heartbeat import keep_beating
from fullft_cluster.train.metrics import Metrics
from fullft_cluster.train.setup import Job
from fullft_cluster.train.stop import StopFlag
from fullft_cluster.train.streaming import StreamedData

BEAT_SECONDS = 1.0
"""At most one heartbeat a second of training: a small write on a shared file system, from every rank."""
MOST_BLOCKS = 16
"""Blocks of data that the message about a loss that is not finite names."""


def is_norm(value: float) -> bool:
    """Return whether a gradient norm is one: DeepSpeed marks a gradient that is not finite by infinity, NaN or -1.

    https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/stage3.py (`get_grad_norm_direct`)
    """
    return math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class Data:
    """What is learnt, in its order, and what the loss is evaluated on."""

    train: PreparedData
    order: Order
    validation: PackedData | None = None


def open_data(job: Job) -> Data:
    """Open what data.json names. Raises DataFault."""
    plan, cache, held_out = job.plan, Path(job.data["cache"]), job.data.get("validation")
    steps: dict[str, Any] = {
        "global_batch_size": plan.global_batch_size, "epochs": plan.epochs, "max_steps": plan.max_steps,
        "seed": plan.seed,
    }  # fmt: skip
    validation = PackedData(Path(held_out["cache"])) if held_out else None
    if job.config.data.streaming:
        streamed = StreamedData(cache, job.config)
        return Data(streamed, streamed.order(**steps), validation)
    train = PackedData(cache)
    return Data(train, Order(blocks=len(train), **steps), validation)


def beginning(job: Job, data: Data) -> TrainerState:
    """Return where a run stands that has no checkpoint."""
    plan = job.plan
    return TrainerState(
        step=0, tokens=0, data_key=data.train.meta.key, seed=plan.seed, seq_len=plan.seq_len,
        global_batch_size=plan.global_batch_size,
    )  # fmt: skip


@dataclass(frozen=True)
class StepResult:
    """What a step has yielded, the same on every rank."""

    loss: float
    """Mean over the labels of the whole global batch, nats."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Useful ones: padding does not count."""
    padded_tokens: int
    """All that were computed."""
    stop: bool
    checkpoint: bool


class Trainer:
    """Trains one job from where its newest checkpoint stands."""

    def __init__(self, job: Job, engine: Engine, data: Data, stop: StopFlag) -> None:
        self._job, self._engine, self._stop = job, engine, stop
        self._data, self._order = data.train, data.order
        self._evaluator = Evaluator(job, engine, data.validation, stop) if data.validation is not None else None
        self._eval_steps = job.config.train.eval_steps or job.config.output.save_steps
        self._rank = job.identity.rank
        self._last_beat = 0.0

    def run(self, state: TrainerState, progress: Progress, metrics: Metrics) -> tuple[TrainerState, bool]:
        """Train to the end, or to a stop that the ranks agree on; return (where it stands, whether it was stopped).

        A stop that comes before the first step saves nothing: all that is known is the checkpoint that was resumed
        from, or at step 0 the seed, and a restart computes the same from either. One that comes during a save costs no
        further step: the ranks agree anew after it. One that comes in the last step or its save is a finish, unless an
        evaluation is still to come: a stop comes before one, and the next attempt makes up for it.
        """
        if not self._is_over(state) and self._agree_on_stop():
            return state, True
        keep_best(self._job, state)
        stop = False
        if self._evaluation_is_due(state):
            state, stop = self._settle(state, progress, metrics)
        while not stop and not self._is_over(state):
            began = time.perf_counter()
            result = self.step(state.step)
            metrics.add(result.tokens, result.padded_tokens, time.perf_counter() - began)
            state = msgspec.structs.replace(state, step=state.step + 1, tokens=state.tokens + result.tokens)
            progress.step = state.step
            self._log(state.step, result, metrics)
            state, stop = self._settle(state, progress, metrics, result)
        return state, stop

    def _is_over(self, state: TrainerState) -> bool:
        """Return whether nothing is left but the export."""
        return bool(state.finished) or (state.step >= self._order.total_steps and not self._evaluation_is_due(state))

    def _evaluation_is_due(self, state: TrainerState) -> bool:
        if self._evaluator is None or state.finished or state.step in (0, state.evaluated_step):
            return False
        return state.step % self._eval_steps == 0 or state.step == self._order.total_steps

    def _settle(
        self, state: TrainerState, progress: Progress, metrics: Metrics, result: StepResult | None = None
    ) -> tuple[TrainerState, bool]:
        """Evaluate and save where that is due after a step; return (where it stands, whether to stop).

        The evaluation comes first, so that the checkpoint knows of it. Without a `result`, the step is that of the
        checkpoint that was resumed from.
        """
        stop = result is not None and result.stop
        best = state.best_step
        if self._evaluation_is_due(state) and not stop:
            state, stop = self._evaluate(state, metrics)
        over = self._is_over(state)
        stop = stop and not over
        due = state.step % self._job.config.output.save_steps == 0 or over
        asked = result is not None and result.checkpoint
        if (due or stop or asked or state.best_step != best) and progress.committed_step != state.step:
            self._save(state, metrics)
            progress.committed_step = state.step
            stop = stop or (not over and self._agree_on_stop())
        if state.best_step != best and not stop:
            with keep_beating(self._job, state.step, "export"):
                keep_best(self._job, state)
            self._last_beat = 0.0
            stop = not over and self._agree_on_stop()  # it takes minutes for a large model, and another step would too
        return state, stop

    def _evaluate(self, state: TrainerState, metrics: Metrics) -> tuple[TrainerState, bool]:
        """Evaluate (a collective); return (where it stands, whether a stop came before its end)."""
        assert self._evaluator is not None
        found = self._evaluator.evaluate(state.step, lambda: self.beat(state.step, "evaluate"))
        if found is None:
            return state, True
        train = self._job.config.train
        after = judge(
            state, found, patience=train.early_stopping_patience, threshold=train.early_stopping_threshold
        )  # fmt: skip
        if self._rank == 0:
            metrics.write_evaluation(
                state.step, found, best=after.best_step == state.step, finished=after.finished
            )  # fmt: skip
        return after, False

    def step(self, step: int) -> StepResult:
        """Compute one optimizer step (counted from 0). Raises NotFiniteError on all ranks alike."""
        plan = self._job.plan
        blocks = self._order.step(step)
        labels = max(self._data.labels_in(blocks), 1)
        share = rank_share(
            blocks, rank=self._rank, world_size=self._job.identity.world_size, micro_batch_size=plan.micro_batch_size
        )
        learning_rate = self._engine.learning_rate()
        losses = []
        for micro_batch in share:
            self.beat(step, "train")
            losses.append(self._engine.micro_step(self._data.batch(micro_batch), labels))
        grad_norm = self._engine.step()
        # The one collective of our own a step: the loss, whether it is sound, and the two wishes. Its result is the
        # same on every rank.
        loss_sum, unsound, stop, checkpoint = comm.sum_over_ranks(
            [
                float(torch.stack(losses).double().sum()),
                float(not is_norm(grad_norm)),
                float(self._stop.wanted(self._job.run, self._rank)),
                float(self._rank == 0 and self._job.run.checkpoint_request.exists()),
            ],
            self._engine.device,
        )
        loss = loss_sum / labels
        if unsound or not math.isfinite(loss):
            self._fail(step, (loss, grad_norm), share, losses)
        return StepResult(
            loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, tokens=self._data.tokens_in(blocks),
            padded_tokens=self._data.padded_tokens_in(blocks), stop=stop > 0, checkpoint=checkpoint > 0,
        )  # fmt: skip

    def _fail(self, step: int, found: tuple[float, float], share: Ints, losses: list[torch.Tensor]) -> NoReturn:
        """Raise NotFiniteError (a collective), naming the blocks whose own loss is not finite, or all of the step's.

        The weights have been updated with such a gradient: what raises here never comes to a checkpoint.
        """
        mine = [(blocks.tolist(), bool(torch.isfinite(loss))) for blocks, loss in zip(share, losses, strict=True)]
        seen = [one for rank in comm.on_every_rank(lambda: mine) for one in rank]
        odd = [blocks for blocks, finite in seen if not finite] or [blocks for blocks, _ in seen]
        numbers = sorted({block for blocks in odd for block in blocks if block >= 0})
        shown = ", ".join(map(str, numbers[:MOST_BLOCKS])) + (", ..." if len(numbers) > MOST_BLOCKS else "")
        what = f"the loss is {found[0]} and the gradient norm {found[1]} at step {step + 1}, in the blocks {shown}"
        fix = f"Lower train.learning_rate, or look at the rows of these blocks of {self._data.meta.key}."
        raise NotFiniteError(Problem(self._job.run.name, what, fix))

    def beat(self, step: int, phase: str) -> None:
        """Write this rank's heartbeat of a step, unless the last one is younger than `BEAT_SECONDS`."""
        now = time.monotonic()
        if not self._last_beat or now - self._last_beat >= BEAT_SECONDS:
            self._job.run.beat(self._rank, step, phase)
            self._last_beat = now

    def _save(self, state: TrainerState, metrics: Metrics) -> None:
        """Commit a checkpoint; a request for one is met by it."""
        began = time.perf_counter()
        with keep_beating(self._job, state.step, "save"):
            checkpointing.save(self._job, self._engine, state)
        self._last_beat = 0.0
        if self._rank == 0:
            metrics.flush()
            self._job.run.checkpoint_request.unlink(missing_ok=True)
            print(f"checkpoint of step {state.step} committed in {time.perf_counter() - began:.1f} s", flush=True)

    def _agree_on_stop(self) -> bool:
        wanted = float(self._stop.wanted(self._job.run, self._rank))
        return comm.sum_over_ranks([wanted], self._engine.device)[0] > 0

    def _log(self, step: int, result: StepResult, metrics: Metrics) -> None:
        every = self._job.config.output.log_steps
        if self._rank != 0 or (step % every and step != self._order.total_steps and not result.stop):
            return
        metrics.write(
            {
                "step": step, "loss": result.loss, "lr": result.learning_rate, "grad_norm": result.grad_norm,
                "epoch": self._order.epoch(step),
            }
        )  # fmt: skip
