"""train.loop without processes: when the ranks agree on a stop, what is saved when, and what a resume goes on with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("torch")

from loop_world import TOTAL_STEPS, World

from fullft_cluster.train import loop
from fullft_cluster.train.checkpointing import TrainerState
from fullft_cluster.train.data import Order
from fullft_cluster.train.exits import NotFiniteError


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "run", monkeypatch)


def ended(world: World) -> tuple[int, bool]:
    state, stopped = world.train()
    return state.step, stopped


def test_an_ordinary_step_costs_one_collective_and_a_save_one_more(world: World) -> None:
    assert ended(world) == (TOTAL_STEPS, False)
    assert world.saved_steps == [2, 4, 6]
    assert world.collectives == 1 + TOTAL_STEPS + 2, "at the start, a step, and a save that more steps follow"


def test_a_warning_during_a_periodic_save_costs_no_further_step(world: World) -> None:
    def warn(step: int) -> None:
        world.stop.signalled = step == 4

    world.in_save = warn
    assert ended(world) == (4, True)
    assert world.saved_steps == [2, 4], "nothing was left to save"
    assert world.progress.committed_step == world.progress.step == 4


def test_a_warning_while_the_best_weights_are_written_costs_no_further_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their checkpoint is committed before."""
    world.evaluate_every(3, [2.0, 1.0])

    def keep_best(job: object, state: TrainerState) -> None:
        world.stop.signalled = state.step == 3

    monkeypatch.setattr(loop, "keep_best", keep_best)
    state, stopped = world.train()
    assert (state.step, stopped, world.saved_steps) == (3, True, [2, 3])


def test_a_file_that_asks_for_a_stop_during_a_save_is_seen_as_well(world: World) -> None:
    world.in_save = lambda step: world.run.stop.touch()
    assert ended(world) == (2, True)
    assert world.saved_steps == [2]


def test_a_warning_during_the_last_save_is_a_finish(world: World) -> None:
    def warn(step: int) -> None:
        world.stop.signalled = step == TOTAL_STEPS

    world.in_save = warn
    assert ended(world) == (TOTAL_STEPS, False)


@pytest.mark.parametrize("norm", [math.inf, math.nan, -1.0])
def test_what_deepspeed_gives_for_a_gradient_that_is_not_finite(world: World, norm: float) -> None:
    world.grad_norm = norm
    with pytest.raises(NotFiniteError, match=f"gradient norm {norm} at step 1"):
        world.train()
    assert world.saved_steps == []


def test_a_gradient_of_zero_is_finite(world: World) -> None:
    world.grad_norm = 0.0
    assert ended(world) == (TOTAL_STEPS, False)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_block_and_is_never_saved(world: World, loss: float) -> None:
    """The norm may look sound: a block of padding beside it, or a kernel that passes over NaN."""
    world.loss = loss
    block = world_order().step(0)[0]
    with pytest.raises(NotFiniteError, match=rf"the loss is {loss} .* at step 1, in the blocks {block}$|{block}\b"):
        world.train()
    assert world.saved == []


def world_order() -> Order:
    return Order(blocks=9, global_batch_size=1, epochs=1, max_steps=TOTAL_STEPS, seed=1)


def test_a_resume_reads_the_blocks_that_are_left_and_no_other(world: World) -> None:
    """Found by arithmetic: replaying what was learnt before would read its blocks, too."""
    world.train()
    whole, world.data.read = world.data.read, []
    world.stop.signalled = False
    world.train(world.saved[1])
    assert world.data.read == whole[4:]


def test_the_order_of_a_late_step_is_drawn_once() -> None:
    """At any step one permutation is drawn, that of its epoch; two where its batch runs on into the next."""
    drawn = []

    class Counted(Order):
        def _draw(self, epoch: int) -> object:
            drawn.append(epoch)
            return super()._draw(epoch)

    order = Counted(blocks=1000, global_batch_size=8, epochs=100, max_steps=None, seed=1)
    order.step(10_000)
    assert drawn == [80]
    assert (
        order.step(10_000) == Order(blocks=1000, global_batch_size=8, epochs=100, max_steps=None, seed=1).step(10_000)
    ).all()
