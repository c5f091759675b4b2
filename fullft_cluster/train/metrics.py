"""metrics.jsonl: one line a log step and one an evaluation, written by rank 0; the trackers get the same numbers."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from fullft_cluster.hardware import CPU, load_gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Plan
from fullft_cluster.planner.speed import flops_per_token
from fullft_cluster.rundir import append_line, fsync_path
from fullft_cluster.train.evaluation import Evaluation
from fullft_cluster.train.setup import Job
from fullft_cluster.train.tracking import Trackers
from fullft_cluster.units import GIB, duration, in_gib

PACE_STEPS = 50
"""The time left is told from the pace of so many last steps, saves and evaluations between them included."""


def peak_flops(plan: Plan) -> float | None:
    """Return the dense bf16 peak of all GPUs together, FLOP/s; None on CPUs."""
    return None if plan.gpu == CPU else load_gpu(plan.gpu).peak_tflops * 1e12 * plan.gpus


def peak_memory_gib() -> float:
    """Return the most memory that this process has held, GiB: of its GPU, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def progress_line(line: Mapping[str, Any]) -> str:
    """Return a line of metrics.jsonl as the log shows it."""
    left = line["eta_seconds"]
    parts = [
        f"step {line['step']}/{line['total_steps']}",
        f"loss {line['loss']:.4f}",
        f"lr {line['lr']:.3g}",
        f"gradient norm {line['grad_norm']:.3g}",
        f"{line['tokens_per_second']:,.0f} tokens/s ({line['tokens_per_second_with_padding']:,.0f} with padding)",
        *([f"MFU {line['mfu']:.1%}"] if line["mfu"] is not None else []),
        in_gib(line["memory_gib"]),
        *([f"{duration(left)} left"] if left is not None else []),
    ]
    return " | ".join(parts)


class Metrics:
    """Gathers what happened between two log steps and writes one line of it; for rank 0."""

    def __init__(self, job: Job, model: ModelSpec, total_steps: int, trackers: Trackers) -> None:
        self._run, self._attempt, self._total_steps, self._trackers = job.run, job.attempt, total_steps, trackers
        self._peak = peak_flops(job.plan)
        # Of the model alone: MFU counts no recomputation, and attention as if no block were packed.
        self._flops_per_token = flops_per_token(model, job.plan.seq_len, recompute=False)
        self._tokens, self._padded_tokens, self._seconds = 0, 0, 0.0
        self._ends = deque([time.monotonic()], maxlen=PACE_STEPS + 1)

    def add(self, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Count a step's useful tokens, all that it computed (padding too), and its time."""
        self._tokens += tokens
        self._padded_tokens += padded_tokens
        self._seconds += seconds
        self._ends.append(time.monotonic())

    def write(self, values: dict[str, Any]) -> None:
        """Append a line with the values given (`step`, `loss`, `lr`, `grad_norm`) and the speed since the last one."""
        seconds = self._seconds or math.inf
        speed, padded = self._tokens / seconds, self._padded_tokens / seconds
        self._tokens, self._padded_tokens, self._seconds = 0, 0, 0.0
        line = {
            **values,
            "total_steps": self._total_steps,
            "tokens_per_second": speed,
            "tokens_per_second_with_padding": padded,
            "mfu": speed * self._flops_per_token / self._peak if self._peak else None,
            "memory_gib": peak_memory_gib(),
            "eta_seconds": self._eta(values["step"]),
        }
        self._append(line)
        print(progress_line(line), flush=True)

    def write_evaluation(self, step: int, evaluation: Evaluation, *, best: bool, finished: str) -> None:
        """Append the line of an evaluation; `finished` says why training ends with it, if it does."""
        line = {
            "step": step,
            "total_steps": self._total_steps,
            "eval_loss": evaluation.loss,
            "perplexity": evaluation.perplexity,
            "eval_tokens": evaluation.labels,
            "eval_seconds": evaluation.seconds,
            **({"finished": finished} if finished else {}),
        }
        self._append(line)
        print(
            f"evaluation at step {step}: loss {evaluation.loss:.4f} | perplexity {evaluation.perplexity:,.2f} | "
            f"{evaluation.labels:,} tokens in {evaluation.seconds:.1f} s{' | the best so far' if best else ''}",
            *([finished] if finished else []),
            sep="\n",
            flush=True,
        )

    def flush(self) -> None:
        """Make all lines durable: a checkpoint has been committed, and what led to it will not be computed again."""
        if self._run.metrics.exists():
            fsync_path(self._run.metrics)
        self._trackers.flush()

    def _append(self, line: dict[str, Any]) -> None:
        line |= {"attempt": self._attempt, "time": time.time()}
        # An fsync at each step would cost a step of a small model some percent on a shared file system.
        append_line(self._run.metrics, line, durable=False)
        self._trackers.log(line)

    def _eta(self, step: int) -> float | None:
        steps = len(self._ends) - 1
        if not steps:
            return None
        return round((self._ends[-1] - self._ends[0]) / steps * (self._total_steps - step), 1)
