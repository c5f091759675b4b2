"""A run that is stopped, killed or damaged goes on as if nothing had happened: in fp32 to the last bit."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_run import STEPS, Training

from fullft_cluster import checkpoints

pytestmark = pytest.mark.distributed

# Imported by the workers at their start: one rank hangs in a call on the way to a commit, as on a file server that
# does not answer, until the test kills all of them.
HANG = """
import os, time
if os.environ["RANK"] == "{rank}":
    real = os.{call}
    def hang(*args, **kwargs):
        name = os.readlink(f"/proc/self/fd/{{args[0]}}") if "{call}" == "fsync" else str(args[-1])
        if "step-20" in name and name.endswith("{file}"):
            open("{marker}", "w").close()
            time.sleep(600)
        return real(*args, **kwargs)
    os.{call} = hang
"""


def steps(training: Training) -> list[int]:
    return [found.step for found in checkpoints.list_checkpoints(training.run.checkpoints) if found.good]


def assert_same(training: Training, reference: Training) -> None:
    assert training.losses() == reference.losses()
    assert sorted(reference.losses()) == list(range(1, STEPS + 1))
    weights, expected = training.weights(), reference.weights()
    assert weights.keys() == expected.keys() != set()
    assert all(weights[name].equal(expected[name]) for name in weights)


def test_reference_saves_and_reports(reference: Training) -> None:
    assert steps(reference) == [30, 40]
    for rank in range(2):
        report = reference.report(rank)
        assert (report["exit_code"], report["kind"], report["step"], report["committed_step"]) == (0, "done", 40, 40)
    losses = [loss for loss, _, _ in reference.losses().values()]
    assert losses[-1] < losses[0] - 1, "it learns"
    rates = [rate for _, _, rate in reference.losses().values()]
    assert rates[0] == 0
    assert max(rates) == rates[4] == 1e-3, "four steps of warm-up"
    assert rates[-1] < 1e-5


def test_stops_that_ranks_agree_on(reference: Training, prepared: Training, tmp_path: Path) -> None:
    training = prepared.copy(tmp_path / "copy")
    run = training.run
    # A signal to one rank only; before it, a checkpoint on request at the first step.
    run.checkpoint_request.touch()
    training.start()
    training.until(lambda: steps(training) == [1])
    training.interrupt(4, lambda: training.signal(1, signal.SIGTERM))
    assert training.wait() == [75, 75], training.log()
    first = training.report(1)
    assert first["kind"] == "stopped"
    assert first["step"] == first["committed_step"] == training.step() == steps(training)[-1]
    assert not run.checkpoint_request.exists()
    # The file that every scheduler's warning becomes; SIGUSR1 to the other rank is the same wish again.
    training.start()
    training.interrupt(first["step"] + 4, run.stop.touch)
    training.signal(0, signal.SIGUSR1)
    assert training.wait() == [75, 75], training.log()
    second = training.report()
    assert second["resumed_from"] == first["step"]
    # A stop before the first step: nothing new to save, nothing lost.
    assert training.train() == [75, 75], training.log()
    third = training.report()
    assert third["step"] == third["committed_step"] == third["resumed_from"] == second["step"]
    run.stop.unlink()
    assert training.train() == [0, 0], training.log()
    assert len(run.metrics.read_text().splitlines()) == STEPS, "no step was computed twice"
    assert_same(training, reference)


def test_kill_in_the_middle_of_a_save(reference: Training, prepared: Training, tmp_path: Path) -> None:
    training = prepared.copy(tmp_path / "copy")
    # Rank 1 has not synced its shard; then rank 0 has renamed the directory, but not marked it complete.
    for rank, call, file in ((1, "fsync", "optim_states.pt"), (0, "replace", checkpoints.COMPLETE)):
        hook, marker = tmp_path / f"hook-{call}", tmp_path / f"hangs-in-{call}"
        hook.mkdir()
        text = HANG.format(rank=rank, call=call, file=file, marker=marker)
        (hook / "sitecustomize.py").write_text(text)
        training.start(sitecustomize=hook)
        training.until(marker.exists)
        training.kill()
        assert steps(training) == [10]
    assert training.train() == [0, 0], training.log()
    assert training.report()["resumed_from"] == 10
    bad = [found for found in checkpoints.list_checkpoints(training.run.checkpoints) if not found.good]
    assert [(found.path.name, found.reason) for found in bad] == [
        ("step-20.bad-1", "it has no COMPLETE: its saving was cut off")
    ]
    assert steps(training) == [30, 40]
    assert not list(training.run.checkpoints.glob(".*")), "leftovers are cleaned"
    assert_same(training, reference)


DISK_FULL = """
import os
if os.environ["RANK"] == "1":
    real = os.fsync
    def full(fd):
        if ".partial-step-10-" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        return real(fd)
    os.fsync = full
"""


def test_failure_of_one_rank_ends_all(prepared: Training, tmp_path: Path) -> None:
    """A full disk on one node: no rank waits in a collective for it, and all say why."""
    training = prepared.copy(tmp_path / "copy")
    (tmp_path / "sitecustomize.py").write_text(DISK_FULL)
    assert training.train(sitecustomize=tmp_path) == [1, 1], training.log()
    assert "No space left on device" in training.report(1)["message"]
    assert training.report(0)["message"].startswith("rank 1 failed: ")
    assert training.report(0)["committed_step"] is None
    assert steps(training) == []


def test_damaged_checkpoint_is_set_aside(reference: Training, tmp_path: Path) -> None:
    training = reference.copy(tmp_path / "copy")
    shutil.rmtree(training.run.export)
    newest = training.run.checkpoints / "step-40"
    shard = next(newest.rglob("*rank_1*optim_states.pt"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert training.train() == [0, 0], training.log()
    assert training.report(0)["resumed_from"] == training.report(1)["resumed_from"] == 30
    reason = (training.run.checkpoints / "step-40.bad-1" / checkpoints.REASON).read_text()
    assert shard.name in reason
    assert "digest" in reason
    assert_same(training, reference)
    training.kill()


def test_finished_run_exports_again_only_what_is_missing(reference: Training, tmp_path: Path) -> None:
    training = reference.copy(tmp_path / "copy")
    shutil.rmtree(training.run.export)
    (training.run.path / "export.partial").mkdir()  # a kill in the middle of the export
    assert training.train() == [0, 0], training.log()
    assert not (training.run.path / "export.partial").exists()
    assert_same(training, reference)


def test_another_engine_is_refused(reference: Training, tmp_path: Path) -> None:
    training = reference.copy(tmp_path / "copy")
    training.config["resources"]["engine"] = "fsdp"
    training.write_files()
    assert training.train() == [93, 93], training.log()
    report = training.report(1)
    assert report["kind"] == "checkpoint"
    assert "was written by ZeRO-3, and FSDP cannot go on from it" in report["message"]
    assert "Traceback" not in training.log()
    assert steps(training) == [30, 40], "they are good, and stay"


def test_nan_ends_the_run_for_good(new_training: Callable[..., Training]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    training = new_training(max_steps=3, hf={"rms_norm_eps": 2e-5})
    path = Path(training.config["weights"]) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    assert training.train() == [93, 93], training.log()
    for rank in range(2):
        assert training.report(rank)["kind"] == "nan"
    assert "the loss is nan" in training.report()["message"]
    assert steps(training) == []


def without(name: str) -> Callable[[Training], Any]:
    return lambda training: (training.run.path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "kind", "says"),
    [
        (without("data.json"), 93, "data", "data.json: cannot be read"),
        (lambda t: t.run.data.write_text('{"seq_len": 9}'), 93, "data", "not prepared for sequences of 64 tokens"),
        (lambda t: t.run.plan.write_text("{}"), 93, "config", "plan.json: cannot be read"),
        (lambda t: t.run.config.write_text("train: {seqlen: 3}"), 93, "config", "seqlen"),
        (lambda t: setattr(t.shape, "world_size", 3), 93, "config", "the plan has 2 processes, but WORLD_SIZE is 3"),
        (lambda t: None, 1, "fenced", "attempt 9 is running"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    prepared: Training, tmp_path: Path, spoil: Callable[[Training], Any], code: int, kind: str, says: str
) -> None:
    training = prepared.copy(tmp_path / "copy")
    spoil(training)
    training.start(current_attempt=9 if kind == "fenced" else None)
    assert set(training.wait()) == {code}, training.log()
    report = training.report(1)
    assert report["kind"] == kind
    assert says in report["message"]
    assert "Traceback" not in training.log()
