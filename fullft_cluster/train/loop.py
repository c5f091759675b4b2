"""The training loop: one optimizer step after another, an agreement after each, a checkpoint when it is due."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import msgspec

from fullft_cluster.errors import Problem
from fullft_cluster.train import checkpointing, comm
from fullft_cluster.train.checkpointing import TrainerState
from fullft_cluster.train.data import Order, PackedData, rank_share
from fullft_cluster.train.engine import Engine
from fullft_cluster.train.exits import NotFiniteError, Progress
from fullft_cluster.train.heartbeat import keep_beating
from fullft_cluster.train.metrics import Metrics
from fullft_cluster.train.setup import Job
from fullft_cluster.train.stop import StopFlag

BEAT_SECONDS = 1.0
"""At most one heartbeat a second of training: a small write on a shared file system, from every rank."""


def is_norm(value: float) -> bool:
    """Return whether a gradient norm is one: DeepSpeed marks a gradient that is not finite by infinity, NaN or -1.

    https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/stage3.py (`get_grad_norm_direct`)
    """
    return math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class StepResult:
    """What a step has yielded, the same on every rank."""

    loss: float
    """Mean over the labels of the whole global batch, nats."""
    grad_norm: float
    learning_rate: float
    tokens: int
    stop: bool
    checkpoint: bool


class Trainer:
    """Trains one job from where its newest checkpoint stands."""

    def __init__(self, job: Job, engine: Engine, data: PackedData, order: Order, stop: StopFlag) -> None:
        self._job, self._engine, self._data, self._order, self._stop = job, engine, data, order, stop
        self._rank = job.identity.rank
        self._last_beat = 0.0

    def run(self, state: TrainerState, progress: Progress, metrics: Metrics) -> tuple[TrainerState, bool]:
        """Train to the end, or to a stop that the ranks agree on; return (where it stands, whether it was stopped).

        A stop that comes before the first step saves nothing: all that is known is the checkpoint that was resumed
        from, or at step 0 the seed, and a restart computes the same from either. One that comes during a save costs no
        further step: the ranks agree anew after it. One that comes in the last step or its save is a finish.
        """
        total = self._order.total_steps
        if state.step < total and self._agree_on_stop():
            return state, True
        while state.step < total:
            began = time.perf_counter()
            result = self.step(state.step)
            metrics.add(result.tokens, time.perf_counter() - began)
            state = msgspec.structs.replace(state, step=state.step + 1, tokens=state.tokens + result.tokens)
            progress.step = state.step
            self._log(state.step, result, metrics)
            stop = result.stop and state.step < total
            due = state.step % self._job.config.output.save_steps == 0 or state.step == total
            if due or stop or result.checkpoint:
                self._save(state)
                progress.committed_step = state.step
                stop = stop or (state.step < total and self._agree_on_stop())
            if stop:
                return state, True
        return state, False

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
            self.beat(step)
            losses.append(self._engine.micro_step(self._data.batch(micro_batch), labels))
        grad_norm = self._engine.step()
        # The one collective of our own a step: the loss and the two wishes. Its result is the same on every rank.
        loss_sum, stop, checkpoint = comm.sum_over_ranks(
            [
                float(sum(loss.double() for loss in losses)),
                float(self._stop.wanted(self._job.run, self._rank)),
                float(self._rank == 0 and self._job.run.checkpoint_request.exists()),
            ],
            self._engine.device,
        )
        loss = loss_sum / labels
        if not (math.isfinite(loss) and is_norm(grad_norm)):
            what = f"the loss is {loss} and the gradient norm {grad_norm} at step {step + 1}"
            fix = "Lower train.learning_rate, or look at the rows of this step."
            raise NotFiniteError(Problem(self._job.run.name, what, fix))
        return StepResult(
            loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, tokens=self._data.tokens_in(blocks),
            stop=stop > 0, checkpoint=checkpoint > 0,
        )  # fmt: skip

    def beat(self, step: int) -> None:
        """Write this rank's heartbeat of a step, unless the last one is younger than `BEAT_SECONDS`."""
        now = time.monotonic()
        if not self._last_beat or now - self._last_beat >= BEAT_SECONDS:
            self._job.run.beat(self._rank, step, "train")
            self._last_beat = now

    def _save(self, state: TrainerState) -> None:
        """Commit a checkpoint; a request for one is met by it."""
        began = time.perf_counter()
        with keep_beating(self._job, state.step, "save"):
            checkpointing.save(self._job, self._engine, state)
        self._last_beat = 0.0
        if self._rank == 0:
            self._job.run.checkpoint_request.unlink(missing_ok=True)
            print(f"checkpoint of step {state.step} committed in {time.perf_counter() - began:.1f} s", flush=True)

    def _agree_on_stop(self) -> bool:
        wanted = float(self._stop.wanted(self._job.run, self._rank))
        return comm.sum_over_ranks([wanted], self._engine.device)[0] > 0

    def _log(self, step: int, result: StepResult, metrics: Metrics) -> None:
        total = self._order.total_steps
        every = self._job.config.output.log_steps
        if self._rank != 0 or (step % every and step != total and not result.stop):
            return
        metrics.write(
            {
                "step": step, "total_steps": total, "loss": result.loss, "lr": result.learning_rate,
                "grad_norm": result.grad_norm, "epoch": self._order.epoch(step),
            }
        )  # fmt: skip
        print(f"step {step}/{total} loss {result.loss:.4f} lr {result.learning_rate:.3g}", flush=True)
