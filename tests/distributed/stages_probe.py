"""One rank that trains several run directories, each of them whole, and stopped and resumed; in one process.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python stages_probe.py WHOLE STOPPED [WHOLE STOPPED ...]

It calls the worker's own `train`, which the worker calls once a process; the imports are what is spared.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from fullft_cluster import checkpoints
from fullft_cluster.rundir import RunDir
from fullft_cluster.train.exits import CheckpointFault, Progress
from fullft_cluster.train.setup import Identity, read_job, set_environment
from fullft_cluster.train.stop import StopFlag
from fullft_cluster.train.worker import start_process_group, train

STOP_AFTER = 5
"""Steps; before the first regular checkpoint, so that the stop writes one of its own."""


class StopAfter(StopFlag):
    """A wish to stop that comes in a certain step of rank 1 alone: it is asked before the first step and in each."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def wanted(self, run: RunDir, rank: int) -> bool:
        self._left -= 1
        return rank == 1 and self._left < 0


def random_weights(path: Path, identity: Identity) -> dict[str, Any]:
    """Return the weights that a run would begin with if it began with random ones."""
    from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine

    job = read_job(RunDir(path), 1, identity)
    random = msgspec.structs.replace(job.config, weights="random")
    return whole_weights(DeepSpeedEngine(replace(job, config=random), torch.device("cpu"), total_steps=1).model())


def whole_weights(model: Any) -> dict[str, Any]:
    """Return copies of the weights that training computes with."""
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter] if hasattr(parameter, "ds_shape") else []):
            weights[name] = parameter.detach().clone()
    return weights


def check_random_weights(paths: list[Path], identity: Identity) -> None:
    """Fail unless the same seed gives the same weights in each run directory, however they are sharded."""
    first, *others = [random_weights(path, identity) for path in paths]
    for other in others:
        assert other.keys() == first.keys()
        assert all(other[name].equal(weight) for name, weight in first.items())
    matrices = {name: float(weight.std()) for name, weight in first.items() if weight.dim() > 1}
    assert all(0.015 < deviation < 0.025 for deviation in matrices.values()), matrices


def check_other_stage(whole: Path, other: Path, identity: Identity) -> None:
    """Fail unless a checkpoint of ZeRO-2 is refused under ZeRO-3, by its name and without a traceback's words."""
    from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine

    engine = DeepSpeedEngine(read_job(RunDir(whole), 1, identity), torch.device("cpu"), total_steps=1)
    newest = checkpoints.newest_good(RunDir(other).checkpoints, set_aside=False)
    assert newest
    try:
        engine.load(newest.path)
    except CheckpointFault as fault:
        assert "was written by ZeRO-2, and ZeRO-3 cannot go on from it" in str(fault)
    else:
        raise AssertionError("a checkpoint of another stage was loaded")


def check_bf16(path: Path, identity: Identity) -> None:
    """Fail unless a checkpoint's weights, rounded to bf16, are those that training in bf16 computes with."""
    from fullft_cluster.train.consolidate import open_weights
    from fullft_cluster.train.data import PackedData
    from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine

    job = read_job(RunDir(path), 1, identity)
    job = replace(
        job, plan=msgspec.structs.replace(job.plan, precision="bf16", warmup_ratio=0.0),
        deepspeed={**job.deepspeed, "bf16": {"enabled": True}},
    )  # fmt: skip
    engine = DeepSpeedEngine(job, torch.device("cpu"), total_steps=4)
    began = whole_weights(engine.model())
    data = PackedData(Path(job.data["cache"]))
    for _ in range(job.plan.gradient_accumulation_steps):
        engine.micro_step(data.batch(np.arange(job.plan.micro_batch_size)), 100)
    engine.step()
    directory = path / "bf16"
    engine.save(directory)
    torch.distributed.barrier()
    weights = open_weights(directory)
    for name, trained in whole_weights(engine.model()).items():
        master = weights.tensor(name)
        assert not master.equal(began[name].float()), f"{name} was not trained"
        assert trained.dtype == torch.bfloat16
        assert master.bfloat16().equal(trained), name


def main() -> None:
    identity = Identity.from_environment(os.environ)
    code = 0
    try:
        set_environment(os.environ, "cpu")
        start_process_group(read_job(RunDir(Path(sys.argv[1])), 1, identity))
        check_random_weights([Path(argument) for argument in sys.argv[1:6:2]], identity)
        for argument in sys.argv[1:4:2]:
            check_bf16(Path(argument), identity)
        for number, argument in enumerate(sys.argv[1:]):
            run = RunDir(Path(argument))
            if number % 2:
                assert train(read_job(run, 1, identity), StopAfter(STOP_AFTER), Progress())
            progress = Progress()
            assert not train(read_job(run, 2, identity), StopFlag(), progress)
            assert progress.resumed_from == (STOP_AFTER if number % 2 else None)
        check_other_stage(Path(sys.argv[1]), Path(sys.argv[3]), identity)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as the worker leaves


if __name__ == "__main__":
    main()
