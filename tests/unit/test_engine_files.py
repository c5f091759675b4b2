"""What engines leave in a checkpoint, and in a run directory: no process group, no model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

for name in ("torch", "deepspeed", "transformers"):
    pytest.importorskip(name, reason="the extra `train` is not installed")

import torch  # noqa: E402
from example_plan import example_plan  # noqa: E402

from fullft_cluster.errors import RunFailedError, UsageError  # noqa: E402
from fullft_cluster.plan import Plan  # noqa: E402
from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.train import universal  # noqa: E402
from fullft_cluster.train.checkpointing import own_files  # noqa: E402
from fullft_cluster.train.engine import own_shards  # noqa: E402
from fullft_cluster.train.exits import CheckpointFault  # noqa: E402
from fullft_cluster.train.setup import Identity, read_job  # noqa: E402


def test_each_file_has_one_writer(tmp_path: Path) -> None:
    files = {
        "fsdp/.metadata": 0, "fsdp/__0_0.distcp": 0, "fsdp/__11_0.distcp": 11, "rng-rank-11.pt": 11,
        "zero3/zero_pp_rank_1_mp_rank_00_model_states.pt": 1, "zero2/mp_rank_00_model_states.pt": 0,
        "trainer_state.json": 0,
    }  # fmt: skip
    for path in files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    found = {path.relative_to(tmp_path).as_posix(): rank for rank in range(12) for path in own_files(tmp_path, rank)}
    assert found == files


def test_another_engines_checkpoint_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "fsdp").mkdir()
    assert own_shards(tmp_path, "fsdp") == tmp_path / "fsdp"
    with pytest.raises(CheckpointFault, match=r"was written by FSDP, and ZeRO-2 cannot go on from it"):
        own_shards(tmp_path, "zero2")


def test_a_conversion_needs_room_and_clears_what_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "step-3"
    (checkpoint / "zero3").mkdir(parents=True)
    (checkpoint / "zero3" / "shard.pt").write_bytes(b"x" * 1000)
    left = tmp_path / ".universal-step-2-abc"
    left.mkdir()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9999, 0, 2400))
    with pytest.raises(RunFailedError, match=r"takes 0\.0 GB beside it"):
        universal.convert(checkpoint, "zero3", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3"]


CONVERSION = """
import os, sys, time, types
from concurrent.futures import ProcessPoolExecutor

def slow(_):
    time.sleep(0.5)
    return os.getpid()

def convert(_):
    with ProcessPoolExecutor(2) as pool:
        print(*{*pool.map(slow, range(2)), os.getpid()}, flush=True)
        list(pool.map(slow, range(1000)))

converter = types.SimpleNamespace(main=convert)
sys.modules["deepspeed"] = types.ModuleType("deepspeed")
sys.modules["deepspeed.checkpoint"] = types.SimpleNamespace(ds_to_universal=converter)
from fullft_cluster.train.universal import main
sys.argv[1:] = ["shards", "output", "2"]
main()
"""


def test_a_kill_ends_the_processes_of_a_conversion(tmp_path: Path) -> None:
    """They hold shards in memory, and nobody would ever tell them to end."""
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CONVERSION!r}])"
    with subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        numbers = process.stdout.readline().split()
        assert len(numbers) >= 2 and all(alive(number) for number in numbers)
        process.kill()
    deadline = time.monotonic() + 60
    while any(alive(number) for number in numbers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(number) for number in numbers)


def alive(number: str) -> bool:
    """Return whether a process runs: not one that has ended and is waited for by nobody."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_state_of_all_ranks_holds_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "optimizer_state.pt"
    shards = [torch.zeros(1000), torch.zeros(1000)]
    state = {"optimizer_state_dict": {"state": {0: {"step": torch.tensor(7.0), "exp_avg": shards[0]}}}, "fp32": shards}
    torch.save({**state, "zero_stage": 3}, path)
    universal.slim(path)
    slim = torch.load(path, weights_only=True)
    assert slim["optimizer_state_dict"]["state"][0] == {"step": torch.tensor(7.0), "exp_avg": None}
    assert slim["zero_stage"] == 3
    assert path.stat().st_size < 4000


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp"])
def test_only_deepspeed_reads_deepspeed_json(tmp_path: Path, engine: str) -> None:
    plan = example_plan(engine=engine)
    run = RunDir(tmp_path / "run")
    run.make()
    run.config.write_text("model: 7b\n")
    run.plan.write_bytes(plan.to_json())
    run.data.write_text(json.dumps({"seq_len": plan.seq_len}))
    identity = Identity(rank=0, local_rank=0, world_size=plan.gpus, local_world_size=plan.gpus_per_node)
    if engine == "fsdp":
        assert read_job(run, 1, identity).deepspeed == {}
    else:
        with pytest.raises(UsageError, match=r"deepspeed\.json: cannot be read"):
            read_job(run, 1, identity)


def test_whole_gradients_wait_only_where_the_plan_leaves_room() -> None:
    from fullft_cluster.train.fsdp_engine import keeps_whole_gradients

    def plan(high: float, accumulation: int) -> Plan:
        import msgspec

        made = example_plan(engine="fsdp", gradient_accumulation_steps=accumulation)
        size = made.model.parameters * 4 / 2**30
        gpu = msgspec.structs.replace(made.memory.gpu, high_gib=high, capacity_gib=high + 2 * size)
        tight = msgspec.structs.replace(gpu, capacity_gib=high + 0.5 * size)
        memory = msgspec.structs.replace(made.memory, gpu=tight if accumulation == 3 else gpu)
        return msgspec.structs.replace(made, memory=memory)

    assert keeps_whole_gradients(plan(10.0, 2))
    assert not keeps_whole_gradients(plan(10.0, 1)), "there is nothing to wait for"
    assert not keeps_whole_gradients(plan(10.0, 3)), "too little room"
