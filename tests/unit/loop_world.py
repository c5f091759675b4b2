"""One rank alone with an engine that computes nothing, for tests of train.loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fullft_cluster.config import OutputConfig, TrainConfig
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import best, loop
from fullft_cluster.train.checkpointing import TrainerState
from fullft_cluster.train.data import Order
from fullft_cluster.train.exits import Progress
from fullft_cluster.train.stop import StopFlag

SAVE_STEPS = 2
TOTAL_STEPS = 6
BLOCKS = 9
FRESH = TrainerState(step=0, tokens=0, data_key="k", seed=1, seq_len=8, global_batch_size=1)


class FakeData:
    """Blocks of one token and one label each."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.meta = SimpleNamespace(key="k")
        self.read: list[int] = []
        """Blocks that were read, in order."""
        self.labels_in = self.tokens_in = self.padded_tokens_in = np.size

    def __len__(self) -> int:
        return self.blocks

    def batch(self, blocks: Any) -> Any:
        self.read += blocks.tolist()
        return blocks


class World:
    """One rank alone, and what it does."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = RunDir(path)
        self.run.make()
        self.stop, self.progress = StopFlag(), Progress()
        self.data, self.validation = FakeData(BLOCKS), FakeData(0)
        self.output, self.config = OutputConfig(save_steps=SAVE_STEPS), TrainConfig()
        self.saved: list[TrainerState] = []
        self.best: list[int | None] = []
        self.evaluations: list[tuple[int, float]] = []
        self.collectives = 0
        self.grad_norm, self.loss = 1.0, 1.0
        self.eval_losses: Callable[[], float] = lambda: 1.0
        """The mean loss of each batch of the validation set."""
        self.in_save: Callable[[int], None] = lambda step: None
        monkeypatch.setattr(loop.comm, "sum_over_ranks", self._sum)
        monkeypatch.setattr(loop.comm, "on_every_rank", lambda work: [work()])
        monkeypatch.setattr(loop.checkpointing, "save", self._save)
        monkeypatch.setattr(loop, "keep_best", self._keep_best)
        assert best.keep_best is not loop.keep_best

    @property
    def saved_steps(self) -> list[int]:
        return [state.step for state in self.saved]

    def _sum(self, values: list[float], device: object) -> list[float]:
        self.collectives += 1
        return values

    def _save(self, job: object, engine: object, state: TrainerState) -> None:
        self.saved.append(state)
        self.in_save(state.step)

    def _keep_best(self, job: object, state: TrainerState) -> None:
        self.best.append(state.best_step)

    def _note(self, step: int, evaluation: Any, **_: Any) -> None:
        self.evaluations.append((step, evaluation.loss))

    def train(self, start: TrainerState = FRESH) -> tuple[TrainerState, bool]:
        """Train from where a checkpoint stands, as a new process would."""
        job: Any = SimpleNamespace(
            run=self.run,
            identity=SimpleNamespace(rank=0, world_size=1),
            plan=SimpleNamespace(micro_batch_size=1, gradient_accumulation_steps=1),
            config=SimpleNamespace(
                output=self.output, train=self.config, survival=SimpleNamespace(hang_seconds=1800)
            ),
        )  # fmt: skip
        engine: Any = SimpleNamespace(
            device=torch.device("cpu"),
            learning_rate=lambda: 0.1,
            micro_step=lambda batch, labels: torch.tensor(self.loss),
            evaluate=lambda batch: torch.tensor(self.eval_losses() * batch.size),
            step=lambda: self.grad_norm,
        )
        metrics: Any = SimpleNamespace(
            add=lambda *counts: None, write=lambda values: None, flush=lambda: None, write_evaluation=self._note
        )
        order = Order(blocks=BLOCKS, global_batch_size=1, epochs=1, max_steps=TOTAL_STEPS, seed=1)
        validation: Any = self.validation if len(self.validation) else None
        data: Any = self.data
        trainer = loop.Trainer(job, engine, loop.Data(data, order, validation), self.stop)
        self.progress = Progress(step=start.step, committed_step=start.step or None)
        return trainer.run(start, self.progress, metrics)

    def evaluate_every(self, steps: int, losses: list[float], **train: Any) -> None:
        """Have a validation set of one block, whose loss is the next of `losses` at each evaluation."""
        self.validation, left = FakeData(1), iter(losses)
        self.eval_losses = lambda: next(left)
        self.config = msgspec.structs.replace(self.config, eval_steps=steps, **train)
