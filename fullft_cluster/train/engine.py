"""What an engine is: the model in pieces over all ranks, with its optimizer and schedule. The loop knows only `Engine`.

Loss and gradients are those of the *whole* global batch: the sum of all token losses over the number of its labels,
however the batch is cut into micro-steps and ranks (averaging the means of micro-batches weighs the tokens of short
ones more; https://unsloth.ai/blog/gradient).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Plan
from fullft_cluster.train.data import Batch
from fullft_cluster.train.exits import CheckpointFault
from fullft_cluster.train.setup import Job


class Engine(Protocol):
    """What the loop needs of an engine. All methods are collectives."""

    device: torch.device

    def micro_step(self, batch: Batch, labels_in_step: int) -> torch.Tensor:
        """Run forward and backward for one micro-batch; return the sum of its token losses (a detached scalar)."""

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Run forward alone, in eval mode; return the sum of its token losses (a detached scalar)."""

    def step(self) -> float:
        """Clip, update and zero the gradients, move the schedule on; return the gradient norm before clipping."""

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""

    def save(self, directory: Path) -> None:
        """Write this rank's shards of weights, optimizer and schedule."""

    def load(self, directory: Path) -> None:
        """Bring back what `save` wrote at any number of ranks. Raises CheckpointFault for another engine's files."""

    def model(self) -> Any:
        """Return the transformers model (its parameters may be sharded)."""


def make_engine(job: Job, device: torch.device, total_steps: int) -> Engine:
    """Return the engine that the plan names, with the model in it. A collective."""
    if job.plan.engine == "fsdp":
        from fullft_cluster.train.fsdp_engine import FsdpEngine

        return FsdpEngine(job, device, total_steps)
    from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(job, device, total_steps)


ENGINES = {"fsdp": "FSDP", "zero3": "ZeRO-3", "zero2": "ZeRO-2", "zero1": "ZeRO-1"}
"""By the directory of an engine's files within a checkpoint."""


def own_shards(directory: Path, own: str) -> Path:
    """Return the directory of an engine's files within a checkpoint. Raises CheckpointFault for another engine's."""
    if not (directory / own).is_dir():
        found = next((name for shards, name in ENGINES.items() if (directory / shards).is_dir()), "something else")
        what = f"was written by {found}, and {ENGINES[own]} cannot go on from it"
        raise CheckpointFault(
            Problem(str(directory), what, f"Resume with {found}, or begin a new run from its export.")
        )
    return directory / own


def compute_device(plan: Plan, local_rank: int) -> torch.device:
    """Return this process's device, made the current one: cuda:LOCAL_RANK, or cpu.

    Raises RunFailedError where the plan's GPUs are out of reach: a driver or node at fault, not a wish for CPUs.
    """
    if plan.gpu != CPU and not torch.cuda.is_available():
        if torch.version.cuda or torch.version.hip:
            problem = Problem("torch", f"sees no GPU, but the plan is for {plan.gpu}", "Look at the node's driver.")
            raise RunFailedError(problem)
        print(f"This torch is built without CUDA: a plan for {plan.gpu} runs on CPUs.", flush=True)
    if plan.gpu == CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
