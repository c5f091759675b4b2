"""train.loop without processes: when the ranks agree on a stop, and what counts as a gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("deepspeed")
torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.train import loop  # noqa: E402
from fullft_cluster.train.checkpointing import TrainerState  # noqa: E402
from fullft_cluster.train.data import Order  # noqa: E402
from fullft_cluster.train.exits import NotFiniteError, Progress  # noqa: E402
from fullft_cluster.train.stop import StopFlag  # noqa: E402

SAVE_STEPS = 2
TOTAL_STEPS = 6


class World:
    """One rank alone, with an engine that computes nothing."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = RunDir(tmp_path / "run")
        self.run.make()
        self.stop, self.progress = StopFlag(), Progress()
        self.saved: list[int] = []
        self.collectives = 0
        self.grad_norm = 1.0
        self.in_save: Callable[[int], None] = lambda step: None
        monkeypatch.setattr(loop.comm, "sum_over_ranks", self._sum)
        monkeypatch.setattr(loop.checkpointing, "save", self._save)

    def _sum(self, values: list[float], device: object) -> list[float]:
        self.collectives += 1
        return values

    def _save(self, job: object, engine: object, state: TrainerState) -> None:
        self.saved.append(state.step)
        self.in_save(state.step)

    def train(self) -> tuple[int, bool]:
        job: Any = SimpleNamespace(
            run=self.run,
            identity=SimpleNamespace(rank=0, world_size=1),
            plan=SimpleNamespace(micro_batch_size=1),
            config=SimpleNamespace(
                output=SimpleNamespace(save_steps=SAVE_STEPS, log_steps=1), survival=SimpleNamespace(hang_seconds=1800)
            ),
        )
        engine: Any = SimpleNamespace(
            device=torch.device("cpu"),
            learning_rate=lambda: 0.1,
            micro_step=lambda batch, labels: torch.ones(()),
            step=lambda: self.grad_norm,
        )
        data: Any = SimpleNamespace(
            labels_in=np.size, tokens_in=np.size, batch=lambda blocks: blocks
        )  # one label and one token a block
        metrics: Any = SimpleNamespace(add=lambda tokens, seconds: None, write=lambda values: None)
        order = Order(blocks=9, global_batch_size=1, epochs=1, max_steps=TOTAL_STEPS, seed=1)
        start = TrainerState(step=0, tokens=0, data_key="k", seed=1, seq_len=8, global_batch_size=1)
        trainer = loop.Trainer(job, engine, data, order, self.stop)
        state, stopped = trainer.run(start, self.progress, metrics)
        return state.step, stopped


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_an_ordinary_step_costs_one_collective_and_a_save_one_more(world: World) -> None:
    assert world.train() == (TOTAL_STEPS, False)
    assert world.saved == [2, 4, 6]
    assert world.collectives == 1 + TOTAL_STEPS + 2, "at the start, a step, and a save that more steps follow"


def test_a_warning_during_a_periodic_save_costs_no_further_step(world: World) -> None:
    def warn(step: int) -> None:
        world.stop.signalled = step == 4

    world.in_save = warn
    assert world.train() == (4, True)
    assert world.saved == [2, 4], "nothing was left to save"
    assert world.progress.committed_step == world.progress.step == 4


def test_a_file_that_asks_for_a_stop_during_a_save_is_seen_as_well(world: World) -> None:
    world.in_save = lambda step: world.run.stop.touch()
    assert world.train() == (2, True)
    assert world.saved == [2]


def test_a_warning_during_the_last_save_is_a_finish(world: World) -> None:
    def warn(step: int) -> None:
        world.stop.signalled = step == TOTAL_STEPS

    world.in_save = warn
    assert world.train() == (TOTAL_STEPS, False)


@pytest.mark.parametrize("norm", [math.inf, math.nan, -1.0])
def test_what_deepspeed_gives_for_a_gradient_that_is_not_finite(world: World, norm: float) -> None:
    world.grad_norm = norm
    with pytest.raises(NotFiniteError, match=f"gradient norm {norm} at step 1"):
        world.train()
    assert world.saved == []


def test_a_gradient_of_zero_is_finite(world: World) -> None:
    world.grad_norm = 0.0
    assert world.train() == (TOTAL_STEPS, False)
