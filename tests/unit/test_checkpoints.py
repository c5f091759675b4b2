"""checkpoints: a kill or power loss at any moment leaves the newest committed one or the one before."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fullft_cluster import checkpoints as ck
from fullft_cluster.rundir import RunDir

RANKS = 2


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs (no `except Exception` catches it)."""


def write_shards(root: Path, step: int, attempt: int) -> tuple[ck.FileEntry, ...]:
    partial = ck.begin(root, step, attempt)
    (partial / "zero3").mkdir()
    entries: tuple[ck.FileEntry, ...] = ()
    for rank in range(RANKS):
        path = partial / "zero3" / f"rank-{rank}.pt"
        path.write_bytes(f"step {step} rank {rank} ".encode() * 50)
        entries += ck.seal_files(partial, [path], rank)
    return entries


def save(root: Path, step: int, attempt: int = 1, fence: Callable[[], None] = lambda: None) -> Path:
    entries = write_shards(root, step, attempt)
    return ck.commit(root, ck.make_manifest(step, attempt, RANKS, {"x": "1"}, entries), fence)


def digests(found: ck.Checkpoint) -> str:
    return "; ".join(ck.verify_files(found.path, found.manifest().files))


def newest(root: Path, *, set_aside: bool = True) -> int | None:
    found = ck.newest_good(root, set_aside=set_aside, verify=digests)
    return found.step if found else None


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> Iterator[dict[str, object]]:
    """Raise Killed at the n-th call that changes what is on disk, before or after its effect; note what was synced."""
    state: dict[str, object] = {"calls": 0, "synced": set()}

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            state["calls"] = int(str(state["calls"])) + 1
            if state["calls"] == call and before:
                raise Killed
            if name == "fsync":
                state["synced"].add(os.fstat(args[0]).st_ino)  # type: ignore[attr-defined, arg-type]
            result = real(*args, **kwargs)
            if state["calls"] == call:
                raise Killed
            return result

        monkeypatch.setattr(os, name, wrapped)

    with monkeypatch.context():
        for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink"):
            wrap(name)
        yield state
    monkeypatch.undo()


def lose_power(root: Path, synced: object) -> None:
    """Empty every file that was not fsynced: what a machine that loses power may do to them."""
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_ino not in synced:  # type: ignore[operator]
            path.write_bytes(b"")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("power_loss", [False, True])
def test_kill_at_every_point_of_a_save_and_its_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, power_loss: bool
) -> None:
    for call in range(1, 200):
        root = tmp_path / f"{call}"
        root.mkdir()
        save(root, 4)
        save(root, 8)
        old = {path.stat().st_ino for path in root.rglob("*")}
        killed = False
        with killed_at(call, monkeypatch, before=before) as state:
            try:
                save(root, 12)
                committed = True
                ck.retain(root, 2, attempt=1)
            except Killed:
                killed = True
                committed = (root / "step-12" / ck.COMPLETE).exists()
        if power_loss and killed:
            lose_power(root, state["synced"] | old)  # type: ignore[operator]
        assert newest(root) == (12 if committed else 8), call
        # The next attempt goes on: it commits the same step again, and later ones.
        if not committed:
            save(root, 12, attempt=2)
        save(root, 16, attempt=2)
        ck.retain(root, 2, attempt=2)
        assert newest(root) == 16
        good = [found.step for found in ck.list_checkpoints(root) if found.good]
        assert good == [12, 16], call
        assert not list(root.glob(".*")), "leftovers are cleaned after a newer commit"
        if not killed:
            assert call > 15, "every call was tried"
            return
    raise AssertionError("the save never ran through")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "zero3" / "rank-1.pt").unlink(), "zero3/rank-1.pt is missing"),
        (lambda p: (p / "zero3" / "rank-0.pt").write_bytes(b"short"), "has 5 bytes instead of"),
        (lambda p: (p / ck.COMPLETE).unlink(), "it has no COMPLETE: its saving was cut off"),
        (lambda p: (p / ck.MANIFEST).unlink(), "it has no MANIFEST.json"),
        (lambda p: (p / ck.MANIFEST).write_bytes(b"{"), "is damaged"),
        (lambda p: (p / ck.COMPLETE).write_bytes(b""), "is damaged"),
        (lambda p: shutil.copy(p.parent / "step-4" / ck.MANIFEST, p / ck.MANIFEST), "is not the one that was"),
        (lambda p: flip(p / "zero3" / "rank-1.pt"), "rank-1.pt does not have the digest"),
    ],
)
def test_damage_is_set_aside_with_its_reason(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    save(tmp_path, 4)
    damage(save(tmp_path, 8))
    assert newest(tmp_path, set_aside=False) == 4
    assert (tmp_path / "step-8").exists(), "looking changes nothing"
    assert newest(tmp_path) == 4
    bad = tmp_path / "step-8.bad-1"
    assert says in (bad / ck.REASON).read_text()
    assert any(found.path == bad and says in found.reason for found in ck.list_checkpoints(tmp_path))
    # A second bad one of the same step gets a name of its own; both stay.
    damage(save(tmp_path, 8, attempt=2))
    assert newest(tmp_path) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"step-4", "step-8.bad-1", "step-8.bad-2"}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)


def test_none_when_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    write_shards(tmp_path, 4, 1)
    assert newest(tmp_path) is None


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save(tmp_path, step)
    assert newest(tmp_path) == 100
    assert ck.retain(tmp_path, 2, attempt=1) == [5, 10]


def test_a_good_checkpoint_of_the_same_step_stands(tmp_path: Path) -> None:
    first = ck.Checkpoint(8, save(tmp_path, 8), good=True).manifest()
    save(tmp_path, 8, attempt=2)
    assert ck.inspect(tmp_path / "step-8").manifest() == first
    assert not list(tmp_path.glob(".partial*"))


def test_retention_keeps_the_good_ones_and_never_none(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    (tmp_path / "step-12" / ck.COMPLETE).unlink()
    with pytest.raises(ValueError, match="at least 1"):
        ck.retain(tmp_path, 0, attempt=1)
    assert ck.retain(tmp_path, 1, attempt=1) == [4]
    assert newest(tmp_path) == 8


def test_partial_of_the_current_attempt_is_left_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, 12, attempt=2)
    write_shards(tmp_path, 16, attempt=3)
    save(tmp_path, 8, attempt=3)
    (tmp_path / f"{ck.UNIVERSAL}step-4-abc").mkdir()  # a kill in the middle of a resume at another number of processes
    ck.retain(tmp_path, 2, attempt=3)
    assert [path.name for path in tmp_path.glob(".*")] == [".partial-step-16-attempt-3"]


def test_an_older_attempt_is_fenced_off(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    run.update_run(attempt=2)
    save(run.checkpoints, 4, 2, ck.attempt_fence(run, 2))
    run.update_run(attempt=3)
    with pytest.raises(ck.FencedError, match="attempt 3 is running"):
        save(run.checkpoints, 8, 2, ck.attempt_fence(run, 2))
    assert newest(run.checkpoints) == 4


def test_files_that_no_rank_sealed_are_refused(tmp_path: Path) -> None:
    entries = write_shards(tmp_path, 4, 1)
    stray = ck.partial_dir(tmp_path, 4, 1) / "stray.pt"
    stray.write_bytes(b"x")
    with pytest.raises(ck.RunFailedError, match=r"stray\.pt"):
        ck.commit(tmp_path, ck.make_manifest(4, 1, RANKS, {}, entries))
    stray.unlink()
    with pytest.raises(ck.RunFailedError, match=r"rank-1\.pt"):
        ck.commit(tmp_path, ck.make_manifest(4, 1, RANKS, {}, entries[:1]))
    assert newest(tmp_path) is None
