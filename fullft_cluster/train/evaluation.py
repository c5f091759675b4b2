"""Evaluation: the mean loss over all tokens of the validation set, the same however it is cut into batches and ranks.

The sum of all token losses over the number of labels. The mean of the batches' means, which is what is commonly
reported, weighs the tokens of short batches more (https://github.com/huggingface/transformers/issues/39241), and
changes with the batch size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fullft_cluster.errors import Problem
from fullft_cluster.train import comm
from fullft_cluster.train.data import Ints, PackedData
from fullft_cluster.train.engine import Engine
from fullft_cluster.train.exits import DataFault, NotFiniteError
from fullft_cluster.train.setup import Job
from fullft_cluster.train.stop import StopFlag

HIGHEST_SHOWN = 20.0
"""Nats: the perplexity of a higher loss is shown as exp(20), 485 million; exp(710) is infinite."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has yielded, the same on every rank."""

    loss: float
    """Mean over the labels of the whole validation set, nats."""
    labels: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """Return exp(loss): the loss is in nats, so the base is e (2 ** loss is of bits)."""
        return math.exp(min(self.loss, HIGHEST_SHOWN))


def cut(blocks: int, *, rank: int, world_size: int, batch_size: int) -> Ints:
    """Return one rank's part of a set of `blocks` blocks, shape (batches, batch_size): every block on one rank, once.

    All ranks get the same number of batches, because a forward pass is a collective where parameters are sharded: what
    is missing from the last ones is -1, blocks of padding with weight 0.
    """
    together = world_size * batch_size
    numbers = np.full(-(-blocks // together) * together, -1, dtype=np.int64)
    numbers[:blocks] = np.arange(blocks)
    result: Ints = numbers.reshape(-1, world_size, batch_size)[:, rank, :]
    return result


class Evaluator:
    """Evaluates on one validation set. Raises DataFault where it has nothing to predict."""

    def __init__(self, job: Job, engine: Engine, data: PackedData, stop: StopFlag) -> None:
        self._job, self._engine, self._data, self._stop = job, engine, data, stop
        self._labels = data.labels_in(np.arange(len(data)))
        if not self._labels:
            raise DataFault(Problem("data.validation", "has no label: there is nothing in it to predict"))

    def evaluate(self, step: int, beat: Callable[[], None]) -> Evaluation | None:
        """Evaluate the weights after `step` steps (a collective); None where a stop has been asked for meanwhile.

        `beat` is called for each batch. The ranks agree on a stop after as many batches as a step has micro-steps: that
        takes a third of a step, for which a scheduler's warning leaves time. Raises NotFiniteError on all ranks alike.
        """
        began = time.perf_counter()
        plan, identity = self._job.plan, self._job.identity
        share = cut(
            len(self._data), rank=identity.rank, world_size=identity.world_size, batch_size=plan.micro_batch_size
        )
        total = torch.zeros((), dtype=torch.float64, device=self._engine.device)
        for number, blocks in enumerate(share):
            if number and number % plan.gradient_accumulation_steps == 0 and self._sum(0.0)[1]:
                return None
            beat()
            total += self._engine.evaluate(self._data.batch(blocks))
        loss = self._sum(float(total))[0] / self._labels
        if not math.isfinite(loss):
            what = f"the evaluation loss is {loss} at step {step}"
            raise NotFiniteError(Problem(self._job.run.name, what, "Look at the rows of data.validation."))
        return Evaluation(loss=loss, labels=self._labels, seconds=time.perf_counter() - began)

    def _sum(self, loss: float) -> list[float]:
        """Return the sum over the ranks of a loss and of the wishes to stop."""
        wanted = float(self._stop.wanted(self._job.run, self._job.identity.rank))
        return comm.sum_over_ranks([loss, wanted], self._engine.device)
