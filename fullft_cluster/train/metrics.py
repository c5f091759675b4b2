"""metrics.jsonl: one line a log step, written by rank 0."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, append_line
from fullft_cluster.units import GIB


def flops_per_token(plan: Plan) -> float:
    """Return the FLOPs that training needs for a token, without recomputation: ``6 N + 12 L h s``.

    N parameters, L layers, h hidden size, s sequence length. Source: PaLM, appendix B, https://arxiv.org/abs/2204.02311.
    """
    model = plan.model
    attention = 12 * model.num_hidden_layers * model.hidden_size * plan.seq_len
    return 6 * model.parameters + attention


def model_flops_utilization(plan: Plan, tokens_per_second: float, peak_tflops: float | None) -> float | None:
    """Return the share of the GPUs' peak that goes into the model, or None where no peak is known (a CPU).

    `tokens_per_second` is that of all GPUs together; `peak_tflops` of one, dense bf16.
    """
    if not peak_tflops:
        return None
    return tokens_per_second * flops_per_token(plan) / (plan.gpus * peak_tflops * 1e12)


def peak_memory_gib() -> float:
    """Return the most memory that this process has held, GiB: of its GPU, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Metrics:
    """Gathers what happened between two log steps and writes one line of it."""

    def __init__(self, run: RunDir, plan: Plan, attempt: int, peak_tflops: float | None) -> None:
        self._run, self._plan, self._attempt, self._peak = run, plan, attempt, peak_tflops
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
            "mfu": model_flops_utilization(self._plan, speed, self._peak),
            "memory_gib": peak_memory_gib(),
            "attempt": self._attempt,
            "time": time.time(),
        }
        append_line(self._run.metrics, line)
