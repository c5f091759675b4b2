"""What a worker is told: by its environment (who it is) and by the run directory (what to do)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_cluster.config import Config
from fullft_cluster.config_load import read_config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.rundir import RunDir
from fullft_cluster.train.exits import DataFault


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
    """deepspeed.json; empty where the engine is FSDP, which the plan alone sets up."""
    data: dict[str, Any]
    """data.json: `cache`, `key`, `blocks`, ..."""


def read_job(run: RunDir, attempt: int, identity: Identity) -> Job:
    """Read the run directory. Raises UsageError (DataFault for data.json) when a file is missing, damaged or unfit."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    readers = {
        "config": (run.config, read_config),
        "plan": (run.plan, lambda path: Plan.from_json(path.read_bytes())),
        "deepspeed": (run.deepspeed, lambda path: _deepspeed(values.get("plan"), path)),
        "data": (run.data, lambda path: json.loads(path.read_bytes())),
    }
    for name, (path, read) in readers.items():
        try:
            values[name] = read(path)
        except UsageError as error:
            problems += error.problems
        except (OSError, ValueError) as error:  # msgspec's and json's errors are ValueErrors
            fix = "Run `fullft-cluster prepare`." if name == "data" else "Submit the run anew."
            problems.append(Problem(str(path), f"cannot be read ({error})", fix))
    if problems:
        raise (DataFault if "data" not in values and len(problems) == 1 else UsageError)(problems)
    job = Job(run=run, attempt=attempt, identity=identity, **values)
    if not isinstance(job.data, dict) or job.data.get("seq_len") != job.plan.seq_len:
        what = f"was not prepared for sequences of {job.plan.seq_len} tokens"
        raise DataFault(Problem(str(run.data), what, "Run `fullft-cluster prepare`."))
    if job.plan.gpus != identity.world_size:
        what = f"the plan has {job.plan.gpus} processes, but WORLD_SIZE is {identity.world_size}"
        raise UsageError(Problem("WORLD_SIZE", what, "Start as many workers as the plan says."))
    return job


def _deepspeed(plan: Plan | None, path: Path) -> dict[str, Any]:
    if plan is not None and plan.engine == "fsdp":
        return {}
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def set_environment(environment: MutableMapping[str, str], gpu: str) -> None:
    """Set what torch and DeepSpeed read at their import; call it before. `gpu` is the plan's."""
    # DeepSpeed calls collectives by names that torch 2.13 renames; a line for each call would fill the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # the logs of many ranks
        environment.setdefault(name, "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if gpu == CPU:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["DS_ACCELERATOR"] = "cpu"
        # As DeepSpeed's launcher sets it. Without, ZeRO-3 starts a process, `numactl`, for every gradient that it
        # reduces (accelerator/cpu_accelerator.py, `device_count`): a fifth of the step of a small model.
        environment.setdefault("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", "1"))
