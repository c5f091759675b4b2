"""Saving and resuming, all ranks together: the collective side of `fullft_cluster.checkpoints`."""

from __future__ import annotations

import platform
import random
import re
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from fullft_cluster import checkpoints
from fullft_cluster.errors import Problem
from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import write_atomic
from fullft_cluster.train import comm
from fullft_cluster.train.engine import Engine
from fullft_cluster.train.exits import DataFault
from fullft_cluster.train.setup import Job

STATE = "trainer_state.json"
_RANK_FILE = re.compile(r"zero_pp_rank_(\d+)_mp_rank|^rng-rank-(\d+)\.pt$|^__(\d+)_\d+\.distcp$")
_LIBRARIES = ("torch", "transformers", "deepspeed", "numpy", "fullft-cluster")


class TrainerState(Frozen, frozen=True, kw_only=True):
    """Where training stands. The data position is the step: the order of data is a function of it."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Useful tokens learnt from so far."""
    data_key: str
    seed: int
    seq_len: int
    global_batch_size: int
    evaluated_step: int = 0
    """The step of the last evaluation; one that a stop came before is made up for after the resume."""
    best_loss: float | None = None
    """The lowest evaluation loss, nats, of step `best_step`."""
    best_step: int | None = None
    evaluations_without_better: int = 0
    finished: str = ""
    """Why training is over before its last step."""


def save(job: Job, engine: Engine, state: TrainerState) -> None:
    """Commit a checkpoint of this step and delete the oldest ones.

    Raises FencedError, RunFailedError or OSError (disk full) on all ranks alike.
    """
    root, rank = job.run.checkpoints, job.identity.rank
    fence = checkpoints.attempt_fence(job.run, job.attempt)

    def begin() -> str:
        fence()
        return str(checkpoints.begin(root, state.step, job.attempt))

    directory = Path(comm.on_rank_zero(begin))
    engine.save(directory)

    def seal() -> tuple[checkpoints.FileEntry, ...]:
        torch.save(rng_state(), directory / f"rng-rank-{rank}.pt")
        if rank == 0:
            write_atomic(directory / STATE, msgspec.json.encode(state) + b"\n")
        return checkpoints.seal_files(directory, own_files(directory, rank), rank)

    entries = [entry for part in comm.on_every_rank(seal) for entry in part]

    def commit() -> None:
        manifest = checkpoints.make_manifest(
            state.step, job.attempt, job.identity.world_size, library_versions(), entries
        )
        checkpoints.commit(root, manifest, fence)
        checkpoints.retain(root, job.config.output.save_total_limit, job.attempt)

    comm.on_rank_zero(commit)


def own_files(directory: Path, rank: int) -> list[Path]:
    """Return the files that this rank wrote: those with its number; rank 0 also those without one."""
    own = []
    for path in directory.rglob("*"):
        match = _RANK_FILE.search(path.name)
        writer = int(match[match.lastindex or 0]) if match else 0
        if writer == rank and path.is_file():
            own.append(path)
    return own


def library_versions() -> dict[str, str]:
    """Return the versions of what writes the files."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def rng_state() -> dict[str, Any]:
    """Return the state of all random number generators, as types that torch.load takes with weights_only."""
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Bring back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))


def resume(job: Job, engine: Engine, expected: TrainerState) -> TrainerState | None:
    """Load the newest checkpoint that holds, on all ranks, and return where it stands; None when there is none.

    Rank 0 proposes, the ranks share the work of checking all files' digests, and one bad file sets the checkpoint aside
    for all. It may have been written by another number of processes. Raises CheckpointFault for one of another engine,
    DataFault when the data or its order has changed.
    """
    root, rank = job.run.checkpoints, job.identity.rank
    fence = checkpoints.attempt_fence(job.run, job.attempt)

    def propose() -> checkpoints.Checkpoint | None:
        fence()
        return checkpoints.newest_good(root, set_aside=True)

    while (found := comm.on_rank_zero(propose)) is not None:
        manifest = found.manifest()
        mine = [entry for entry in manifest.files if entry.rank % job.identity.world_size == rank]
        verdicts = comm.on_every_rank(partial(checkpoints.verify_files, found.path, mine))
        wrong = "; ".join(problem for problems in verdicts for problem in problems)
        if not wrong:
            if rank == 0 and manifest.world_size != job.identity.world_size:
                print(f"{found.path.name} was written by {manifest.world_size} processes", flush=True)
            return _load(found.path, engine, expected, rank)
        comm.on_rank_zero(partial(checkpoints.move_aside, found.path, wrong))
    return None


def _load(path: Path, engine: Engine, expected: TrainerState, rank: int) -> TrainerState:
    state = msgspec.json.decode((path / STATE).read_bytes(), type=TrainerState)
    changed = [
        Problem(
            str(path), f"{name} was {getattr(state, name)} and is now {getattr(expected, name)}", "Start a new run."
        )
        for name in ("data_key", "seed", "seq_len", "global_batch_size")
        if getattr(state, name) != getattr(expected, name)
    ]
    if changed:
        raise DataFault(changed)
    engine.load(path)
    own = path / f"rng-rank-{rank}.pt"
    if own.exists():
        restore_rng(torch.load(own, weights_only=True))
    else:  # a rank more than wrote it
        torch.manual_seed(expected.seed + rank)
    return state
