"""Evaluation: one number for a validation set however it is cut; when it comes, what it stops, what it keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("deepspeed")
torch = pytest.importorskip("torch")

from loop_world import FRESH, TOTAL_STEPS, World  # noqa: E402

from fullft_cluster.checkpoints import begin, commit, make_manifest, seal_files  # noqa: E402
from fullft_cluster.config import OutputConfig  # noqa: E402
from fullft_cluster.rundir import RunDir, write_json  # noqa: E402
from fullft_cluster.train import best  # noqa: E402
from fullft_cluster.train.evaluation import Evaluation, Evaluator, cut  # noqa: E402
from fullft_cluster.train.exits import DataFault, NotFiniteError  # noqa: E402
from fullft_cluster.train.stop import StopFlag  # noqa: E402

LOSSES = np.array([[3.0, 3.0, 3.0, 3.0], [1.0, 0, 0, 0], [2.0, 2.0, 0, 0], [5.0, 0, 0, 0], [0.5, 0.5, 0.5, 0]])
LABELS = np.array([4, 1, 2, 1, 3])
"""Of each of five blocks: its tokens' losses, and how many tokens have a label."""
TRUTH = LOSSES.sum() / LABELS.sum()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "run", monkeypatch)


class Ragged:
    """A validation set whose blocks have unlike numbers of labels."""

    def __len__(self) -> int:
        return len(LABELS)

    def labels_in(self, blocks: Any) -> int:
        return int(LABELS[blocks[blocks >= 0]].sum())

    def batch(self, blocks: Any) -> Any:
        return blocks


def evaluate(monkeypatch: pytest.MonkeyPatch, *, world_size: int, batch_size: int) -> float:
    """Evaluate as so many ranks after each other; the last one's sum has those of the others added."""
    sums: list[float] = []

    def sum_over_ranks(values: list[float], _: Any) -> list[float]:
        sums.append(values[0])
        return [sum(sums), 0.0]

    monkeypatch.setattr("fullft_cluster.train.comm.sum_over_ranks", sum_over_ranks)
    engine: Any = SimpleNamespace(
        device=torch.device("cpu"), evaluate=lambda blocks: torch.tensor(LOSSES[blocks[blocks >= 0]].sum())
    )
    data: Any = Ragged()
    for rank in range(world_size):
        job: Any = SimpleNamespace(
            run=RunDir(Path("/nowhere")), identity=SimpleNamespace(rank=rank, world_size=world_size),
            plan=SimpleNamespace(micro_batch_size=batch_size, gradient_accumulation_steps=10**6),
        )  # fmt: skip
        found = Evaluator(job, engine, data, StopFlag()).evaluate(7, lambda: None)
    assert found is not None and found.labels == LABELS.sum()
    return found.loss


CUTS = [(1, 1), (1, 2), (1, 5), (1, 64), (2, 1), (2, 2), (3, 1), (4, 2), (8, 1)]


@pytest.mark.parametrize(("world_size", "batch_size"), CUTS)
def test_the_loss_is_the_same_for_any_batch_and_world_size(
    monkeypatch: pytest.MonkeyPatch, world_size: int, batch_size: int
) -> None:
    assert evaluate(monkeypatch, world_size=world_size, batch_size=batch_size) == pytest.approx(TRUTH, rel=1e-12)


def test_the_usual_mistake_would_show() -> None:
    """The mean of the batches' means is another number for each batch size."""
    for size in (1, 2, 3):
        batches = [slice(first, first + size) for first in range(0, 5, size)]
        mean = np.mean([LOSSES[batch].sum() / LABELS[batch].sum() for batch in batches])
        assert abs(mean - TRUTH) > 0.01 * TRUTH


@pytest.mark.parametrize("blocks", [1, 5, 6, 7, 64])
@pytest.mark.parametrize(("world_size", "batch_size"), CUTS)
def test_each_block_is_on_one_rank_once_and_all_have_as_many_batches(
    blocks: int, world_size: int, batch_size: int
) -> None:
    shares = [cut(blocks, rank=rank, world_size=world_size, batch_size=batch_size) for rank in range(world_size)]
    assert len({share.shape for share in shares}) == 1, "no rank waits in a collective for another"
    assert shares[0].shape[1] == batch_size
    numbers = np.concatenate([share.ravel() for share in shares])
    assert sorted(numbers[numbers >= 0]) == list(range(blocks)), "and none is dropped"


def test_perplexity_is_e_to_the_loss_and_is_shown_within_limits() -> None:
    assert Evaluation(loss=2.0, labels=1, seconds=0.0).perplexity == pytest.approx(math.e**2)
    assert Evaluation(loss=1e4, labels=1, seconds=0.0).perplexity == math.exp(20)


def test_a_validation_set_without_labels_is_refused(world: World) -> None:
    world.evaluate_every(1, [1.0])
    world.validation.labels_in = lambda blocks: 0
    with pytest.raises(DataFault, match=r"data\.validation: has no label"):
        world.train()


def test_it_comes_on_schedule_and_at_the_end_and_the_checkpoint_knows_of_it(world: World) -> None:
    world.evaluate_every(4, [2.0, 1.5])
    state, stopped = world.train()
    assert (state.step, stopped) == (TOTAL_STEPS, False)
    assert world.evaluations == [(4, 2.0), (6, 1.5)]
    assert [(one.step, one.best_step, one.best_loss) for one in world.saved] == [
        (2, None, None), (4, 4, 2.0), (6, 6, 1.5),
    ]  # fmt: skip
    assert world.best == [None, 4, 6], "at the start, and at each improvement"


def test_it_follows_the_checkpoints_where_nothing_is_said(world: World) -> None:
    world.evaluate_every(1, [3.0, 2.0, 1.0])
    world.config = msgspec.structs.replace(world.config, eval_steps=None)
    world.train()
    assert [step for step, _ in world.evaluations] == [2, 4, 6]


def test_an_improvement_is_committed_out_of_turn_and_none_else(world: World) -> None:
    world.evaluate_every(3, [2.0, 2.5])
    world.train()
    assert world.saved_steps == [2, 3, 4, 6]
    assert world.best == [None, 3], "step 6 was no better"


def test_the_same_evaluations_after_a_resume(world: World) -> None:
    world.evaluate_every(2, [3.0, 2.0, 1.0, 9.0, 9.0])
    world.train()
    first, world.evaluations = world.evaluations, []
    world.eval_losses = iter([1.0]).__next__
    assert first == [(2, 3.0), (4, 2.0), (6, 1.0)]
    state, _ = world.train(world.saved[1])
    assert world.evaluations == first[2:], "that of step 4 is not done again"
    assert (state.best_step, state.best_loss) == (6, 1.0)


def test_a_stop_comes_before_an_evaluation_which_the_next_attempt_makes_up_for(world: World) -> None:
    world.evaluate_every(TOTAL_STEPS, [2.0])
    saved = len

    def stop_in_last_step() -> bool:
        return world.progress.step == TOTAL_STEPS - 1

    world.stop.wanted = lambda run, rank: stop_in_last_step()  # type: ignore[method-assign]
    state, stopped = world.train()
    assert stopped, "a stop in the last step is no finish while an evaluation is to come"
    assert world.evaluations == []
    assert (state.step, world.saved_steps) == (6, [2, 4, 6])
    count = saved(world.saved)
    world.stop.wanted = lambda run, rank: False  # type: ignore[method-assign]
    state, stopped = world.train(world.saved[-1])
    assert (stopped, world.evaluations) == (False, [(6, 2.0)])
    assert len(world.saved) == count, "the checkpoint of that step is there"
    assert world.best[-1] == 6


def test_a_stop_during_an_evaluation_ends_it(world: World) -> None:
    world.evaluate_every(4, [])
    world.validation.blocks = 100
    batches = []

    def loss() -> float:
        batches.append(1)
        world.stop.signalled = len(batches) == 3
        return 1.0

    world.eval_losses = loss
    state, stopped = world.train()
    assert (state.step, stopped, len(batches)) == (4, True, 3)
    assert world.saved_steps == [2, 4]
    assert world.saved[-1].evaluated_step == 0
    world.stop.signalled = False
    world.eval_losses = lambda: 1.0
    world.train(world.saved[-1])
    assert world.evaluations == [(4, 1.0), (6, 1.0)]


def test_a_rank_beats_for_each_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullft_cluster.train.loop.BEAT_SECONDS", 0.0)
    beats: list[tuple[int, str]] = []
    monkeypatch.setattr(RunDir, "beat", lambda run, rank, step, phase: beats.append((step, phase)))
    world.evaluate_every(6, [1.0, 1.0, 1.0])
    world.validation.blocks = 3
    world.train()
    assert beats.count((6, "evaluate")) == 3


def test_early_stopping_ends_the_run_as_finished_and_a_resume_knows(world: World) -> None:
    world.evaluate_every(1, [3.0, 2.0, 2.5, 1.95], early_stopping_patience=2, early_stopping_threshold=0.1)
    state, stopped = world.train()
    assert (state.step, stopped) == (4, False)
    said = "early stopping: 2 evaluations without a loss that is lower by more than 0.1; the best is 1.9500 of step 4"
    assert state.finished == said, "it was lower, but not by the threshold"
    assert world.saved[-1] == state
    read = len(world.data.read)
    again, stopped = world.train(world.saved[-1])
    assert (again, stopped) == (state, False)
    assert len(world.data.read) == read, "nothing is trained after the end"


def test_patience_survives_a_resume(world: World) -> None:
    world.evaluate_every(2, [2.0, 2.5], early_stopping_patience=2)
    world.in_save = lambda step: setattr(world.stop, "signalled", step == 4)
    assert world.train()[1]
    world.stop.signalled, world.in_save = False, lambda step: None
    world.eval_losses = lambda: 2.5
    state, _ = world.train(world.saved[-1])
    assert state.evaluations_without_better == 2
    assert state.finished.startswith("early stopping: 2 evaluations")


def test_an_evaluation_that_is_not_finite_ends_the_run_before_a_save(world: World) -> None:
    world.evaluate_every(2, [math.nan])
    with pytest.raises(NotFiniteError, match="the evaluation loss is nan at step 2"):
        world.train()
    assert world.saved == []


# --- RUN/best


class Kept:
    """A run with committed checkpoints, and an export that writes one file."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = RunDir(path)
        self.run.make()
        self.written: list[int] = []
        monkeypatch.setattr("fullft_cluster.train.comm.on_rank_zero", lambda work: work())
        monkeypatch.setattr("fullft_cluster.train.export.export_checkpoint", self._export)
        self.job: Any = SimpleNamespace(run=self.run, attempt=1, config=SimpleNamespace(output=OutputConfig()))

    def checkpoint(self, step: int) -> None:
        partial = begin(self.run.checkpoints, step, 1)
        (partial / "shard.pt").write_text(str(step))
        commit(self.run.checkpoints, make_manifest(step, 1, 1, {}, seal_files(partial, [partial / "shard.pt"], 0)))

    def _export(self, run: RunDir, checkpoint: Path, target: Path) -> Path:
        step = int((checkpoint / "shard.pt").read_text())
        self.written.append(step)
        target.mkdir(exist_ok=True)
        write_json(target / best.export.MARK, {"run": run.name, "step": step})
        return target

    def keep(self, step: int | None, loss: float | None) -> dict[str, Any]:
        best.keep_best(self.job, msgspec.structs.replace(FRESH, best_step=step, best_loss=loss))
        return best.marker(self.run)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path / "run", monkeypatch)


def test_best_follows_each_improvement_and_says_its_step_and_loss(kept: Kept) -> None:
    assert kept.keep(None, None) == {}
    for step, loss in ((2, 3.0), (4, 2.0)):
        kept.checkpoint(step)
        assert kept.keep(step, loss) == {"run": "run", "step": step, "eval_loss": loss}
        kept.keep(step, loss)
    assert kept.written == [2, 4], "what is there is not written again"


def test_best_is_made_up_for_after_a_kill(kept: Kept) -> None:
    """Between the commit and best/, and between best/ and its marker."""
    kept.checkpoint(2)
    kept.checkpoint(4)
    kept.keep(2, 3.0)
    assert kept.keep(4, 2.0)["step"] == 4
    marker = kept.run.best / best.export.MARK
    marker.write_text(json.dumps({"run": "run", "step": 4}))
    assert kept.keep(4, 2.0) == {"run": "run", "step": 4, "eval_loss": 2.0}
    assert kept.written == [2, 4]


def test_best_of_a_step_that_will_be_trained_again_stands(kept: Kept) -> None:
    """The checkpoint that it came from was damaged, so an older one was resumed."""
    for step in (2, 4):
        kept.checkpoint(step)
    kept.keep(4, 2.0)
    assert kept.keep(2, 3.0)["step"] == 4


def test_best_can_be_turned_off_and_does_without_a_checkpoint_that_is_gone(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.keep(2, 3.0) == {}
    assert "is gone" in capsys.readouterr().out
    kept.checkpoint(2)
    kept.job.config.output = OutputConfig(save_best=False)
    assert kept.keep(2, 3.0) == {}
