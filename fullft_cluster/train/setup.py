"""What a worker is told: by its environment (who it is) and by the run directory (what to do)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.rundir import RunDir


class Identity(Frozen, frozen=True, kw_only=True):
    """Which of the processes this is."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Identity:
        """Read RANK and its companions. Raises UsageError, naming all that are missing.

        DeepSpeed would look for MPI when one is missing, and fail with `No module named 'mpi4py'`.
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        bad = [name for name in names if not environment.get(name)]
        bad += [name for name in names if name != "MASTER_ADDR" and not environment.get(name, "0").isdigit()]
        if bad:
            fix = "The node agent sets them; start a worker through it."
            raise UsageError([Problem(name, "is not set to a number in the environment", fix) for name in bad])
        rank, local_rank, world_size, local_world_size = (int(environment[name]) for name in names[:4])
        return Identity(
            rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """All that one worker needs to know; plain data."""

    run: RunDir
    attempt: int
    identity: Identity
    config: Config
    plan: Plan
    deepspeed: dict[str, Any]
    data: dict[str, Any]
    """data.json: `cache`, `key`, `blocks`, ..."""


def read_job(run: RunDir, attempt: int, identity: Identity) -> Job:
    """Read the run directory. Raises UsageError when a file is missing or damaged, or does not fit the world size."""
    values: dict[str, Any] = {}
    problems = []
    readers = {
        "config": (run.config, lambda raw: msgspec.yaml.decode(raw, type=Config)),
        "plan": (run.plan, Plan.from_json),
        "deepspeed": (run.deepspeed, json.loads),
        "data": (run.data, json.loads),
    }
    for name, (path, read) in readers.items():
        try:
            values[name] = read(path.read_bytes())
        except (OSError, ValueError) as error:  # msgspec's and json's errors are ValueErrors
            fix = "Run `fullft-cluster prepare`." if name == "data" else "Submit the run anew."
            problems.append(Problem(str(path), f"cannot be read ({error})", fix))
    if problems:
        raise UsageError(problems)
    job = Job(run=run, attempt=attempt, identity=identity, **values)
    if job.plan.gpus != identity.world_size:
        what = f"the plan has {job.plan.gpus} processes, but WORLD_SIZE is {identity.world_size}"
        raise UsageError(Problem("WORLD_SIZE", what, "Start as many workers as the plan says."))
    return job


def quiet_environment(environment: dict[str, str] | os._Environ[str], *, cuda: bool) -> None:
    """Set what the libraries read at import: DeepSpeed's accelerator, and no progress bars in logs of many ranks."""
    # DeepSpeed calls collectives by names that torch 2.13 renames; a line for each call would fill the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if not cuda:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environment.setdefault("TQDM_DISABLE", "1")
