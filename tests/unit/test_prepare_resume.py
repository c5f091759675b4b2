"""train.shards: a preparation that was killed goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("trl")

from prepared_runs import make_run, sample_text

from fullft_cluster.train import cache_writer, data, prepare, shards

ROOT = Path(__file__).parents[2]


def test_killed_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are there stay; nothing is taken for a cache before its time; no process outlives the killed one."""
    run = make_run(tmp_path, sample_text(400))
    script = f"""
import multiprocessing, os, signal, time
from fullft_cluster.train import prepare, shards

def kill(directory, number):
    if number == 8:
        while not shards.shard_path(directory, 2).exists():
            time.sleep(0.01)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return read(directory, number)

if __name__ == "__main__":
    shards.SHARD_ROWS, read, shards.read_tally = 20, shards.read_tally, kill
    os.sched_getaffinity = lambda _: (0, 1)
    prepare.prepare_run({str(run.path)!r})
"""
    (tmp_path / "killed.py").write_text(script)
    command = [sys.executable, str(tmp_path / "killed.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    children = [int(pid) for pid in killed.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/status").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/status").exists() for pid in children)
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith(".shards-")
    there = {path.name: path.stat().st_mtime_ns for path in left.rglob("*.npz") if not path.name.startswith(".")}
    assert 3 <= len(there) < 20
    monkeypatch.setattr(shards, "SHARD_ROWS", 20)
    made_now: list[int] = []
    make = shards.ShardMaker.make
    monkeypatch.setattr(
        shards.ShardMaker, "make", lambda maker, number, rows: made_now.append(number) or make(maker, number, rows)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: (0,))  # in this process
    made = prepare.prepare_run(str(run.path))
    assert sorted({f"{number:06d}.npz" for number in made_now} | set(there)) == [f"{n:06d}.npz" for n in range(20)]
    assert not {f"{number:06d}.npz" for number in made_now} & set(there)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made["key"]]
    # As if nothing had happened, and whatever the size of the shards.
    monkeypatch.setattr(shards, "SHARD_ROWS", 7)
    fresh = make_run(tmp_path, sample_text(400), name="fresh", cache_dir=str(tmp_path / "other"))
    again = prepare.prepare_run(str(fresh.path))
    assert again["key"] == made["key"]
    for name in (data.TOKENS, data.SUPERVISED, data.BLOCKS, data.STARTS, data.VALID):
        assert (Path(again["cache"]) / name).read_bytes() == (Path(made["cache"]) / name).read_bytes()


def test_one_that_starts_after_its_starter_has_ended_ends_too(tmp_path: Path) -> None:
    """It is slow to start: nobody would ever give it work, or tell it to end."""
    script = """
import multiprocessing, os, signal, time
from fullft_cluster.train import shards

def late():
    print(os.getpid(), flush=True)
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    shards._begin(None)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=late).start()
    time.sleep(600)
"""
    (tmp_path / "late.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "late.py"], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        assert process.stdout.read() == b"", "the child has closed it"
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}/status").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/status").exists()


def test_a_damaged_shard_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, sample_text(5))
    publish = cache_writer.publish
    monkeypatch.setattr(cache_writer, "publish", lambda work, final: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_run(str(run.path))
    (shard,) = (tmp_path / "cache").rglob("*.npz")
    shard.write_bytes(shard.read_bytes()[:100])
    monkeypatch.setattr(cache_writer, "publish", publish)
    assert prepare.prepare_run(str(run.path))["rows"] == 5
