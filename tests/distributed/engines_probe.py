"""One rank that trains several run directories one after another, each as far as its kind says; in one process.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python engines_probe.py RUN ...          RUN: .../ENGINE-whole, -stopped or -switched

The worker's own `train` is called, which the worker calls once a process; the imports are what is spared. FSDP's runs
come first, and before DeepSpeed is imported.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

from fullft_cluster import checkpoints
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.train import fsdp_engine
from fullft_cluster.train.exits import CheckpointFault, Progress
from fullft_cluster.train.setup import Identity, read_job, set_environment
from fullft_cluster.train.stop import StopFlag
from fullft_cluster.train.worker import train

SWITCH = 3


class StopAfter(StopFlag):
    """A wish to stop that comes in a certain step of the last rank alone."""

    def __init__(self, steps: int, last: int) -> None:
        super().__init__()
        self._left, self._last = steps, last

    def wanted(self, run: RunDir, rank: int) -> bool:
        self._left -= 1
        return rank == self._last and self._left < 0


def go(run: RunDir, attempt: int, identity: Identity, *, stops: bool) -> None:
    """Train until the switch, or from there (or the start) to the end."""
    stop = StopAfter(SWITCH, identity.world_size - 1) if stops else StopFlag()
    progress = Progress()
    assert train(read_job(run, attempt, identity), stop, progress) == stops
    assert progress.step == (SWITCH if stops else progress.step)
    assert progress.resumed_from == (None if attempt == 1 else SWITCH)


def refusal(fsdp: RunDir, zero: RunDir, identity: Identity) -> str:
    """Return what FSDP says of ZeRO-3's checkpoint."""
    from fullft_cluster.train.fsdp_engine import FsdpEngine

    engine = FsdpEngine(read_job(fsdp, 1, identity), torch.device("cpu"), total_steps=1)
    newest = checkpoints.newest_good(zero.checkpoints, set_aside=False)
    assert newest
    try:
        engine.load(newest.path)
    except CheckpointFault as fault:
        return str(fault)
    return ""


def main() -> None:
    identity = Identity.from_environment(os.environ)
    runs = [RunDir(Path(path)) for path in sys.argv[1:]]
    imported = None
    code = 0
    try:
        set_environment(os.environ, "cpu")
        for run in runs:
            kind = run.name.split("-")[1]
            # Both ways to sum gradients over ranks: once a step, as the plan allows here, and at each micro-step.
            fsdp_engine.keeps_whole_gradients = lambda plan, kind=kind: kind != "switched"
            if kind == "stopped" or (kind == "switched" and identity.world_size == 2):
                go(run, 1, identity, stops=True)
                # Before the export: transformers' saving looks whether a model is one of DeepSpeed's.
                imported = "deepspeed" in sys.modules if imported is None else imported
            if kind != "switched" or identity.world_size == 1:
                go(run, 1 if kind == "whole" else 2, identity, stops=False)
        if identity.world_size == 2:
            named = {run.name: run for run in runs}
            said = refusal(named["fsdp-whole"], named["zero3-whole"], identity)
            write_json(named["fsdp-whole"].path / "seen.json", {"other_engine": said, "deepspeed_imported": imported})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as the worker leaves


if __name__ == "__main__":
    main()
