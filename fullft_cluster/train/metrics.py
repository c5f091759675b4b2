"""metrics.jsonl: one line a log step, written by rank 0."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from fullft_cluster.hardware import CPU, load_gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Plan
from fullft_cluster.planner.speed import flops_per_token
from fullft_cluster.rundir import RunDir, append_line
from fullft_cluster.units import GIB


def peak_flops(plan: Plan) -> float | None:
    """Return the dense bf16 peak of all GPUs together, FLOP/s; None on CPUs."""
    return None if plan.gpu == CPU else load_gpu(plan.gpu).peak_tflops * 1e12 * plan.gpus


def peak_memory_gib() -> float:
    """Return the most memory that this process has held, GiB: of its GPU, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Metrics:
    """Gathers what happened between two log steps and writes one line of it."""

    def __init__(self, run: RunDir, plan: Plan, model: ModelSpec, attempt: int) -> None:
        self._run, self._attempt = run, attempt
        self._peak = peak_flops(plan)
        # Of the model alone: MFU counts no recomputation, and attention as if no block were packed.
        self._flops_per_token = flops_per_token(model, plan.seq_len, recompute=False)
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a step's useful tokens (padding is none) and its time."""
        self._tokens += tokens
        self._seconds += seconds

    def write(self, values: dict[str, Any]) -> None:
        """Append a line with the values given and the speed since the last one."""
        speed = self._tokens / self._seconds if self._seconds else 0.0
        self._tokens, self._seconds = 0, 0.0
        line = {
            **values,
            "tokens_per_second": speed,
            "mfu": speed * self._flops_per_token / self._peak if self._peak else None,
            "memory_gib": peak_memory_gib(),
            "attempt": self._attempt,
            "time": time.time(),
        }
        append_line(self._run.metrics, line)
