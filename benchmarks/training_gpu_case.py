"""One case of training_gpu.py, as rank 0 of 1: python -m benchmarks.training_gpu_case DEVICE CASE."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_memory import MARK
from benchmarks.gpu_memory_case import make_batch, make_job
from benchmarks.training_case import find_text, texts
from benchmarks.training_gpu import KINDS, GpuCase
from fullft_cluster.resources import share
from fullft_cluster.train.data import IGNORE, Batch
from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine
from fullft_cluster.train.engine import compute_device
from fullft_cluster.train.worker import start_process_group
from fullft_cluster.units import GIB

ROWS = 2000
"""Of the text, whose lengths are those of the documents."""


def document_lengths(longest: int) -> list[int]:
    """Return the tokens of each row of the text, its end marked; the tokens themselves are random."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(str(share("configs") / "sample" / "tokenizer"))
    rows = tokenizer(list(texts(find_text(), ROWS)), add_special_tokens=False)["input_ids"]
    return [min(len(ids) + 1, longest) for ids in rows]


def packed_rows(lengths: Iterator[int], rows: int, size: int) -> list[list[int]]:
    """Return the documents' lengths of some rows, each filled by the next documents as long as they fit."""
    made: list[list[int]] = []
    waiting = next(lengths)
    for _ in range(rows):
        made.append([])
        while sum(made[-1]) + waiting <= size:
            made[-1].append(waiting)
            waiting = next(lengths)
    return made


def batch_of(rows: list[list[int]], case: GpuCase) -> tuple[Batch, int]:
    """Return random tokens in documents of these lengths, the rest of each row padding, and the useful tokens."""
    batch = make_batch(case.memory)
    labels = np.full_like(batch.labels, IGNORE)
    positions = np.zeros_like(batch.position_ids)
    for row, lengths in enumerate(rows):
        begin = 0
        for length in lengths:
            labels[row, begin + 1 : begin + length] = batch.input_ids[row, begin + 1 : begin + length]
            positions[row, begin : begin + length] = np.arange(length)
            begin += length
        # Padding is a document of its own, as in our blocks.
        positions[row, begin:] = np.arange(positions.shape[1] - begin)
    return Batch(input_ids=batch.input_ids, labels=labels, position_ids=positions), sum(map(sum, rows))


def make_batches(case: GpuCase) -> dict[str, list[tuple[Batch, int]]]:
    """Return a step's micro-batches of each kind, with their useful tokens."""
    rows, size = case.memory.micro_batch_size, case.memory.seq_len
    lengths = document_lengths(size)
    endless = iter(lengths * (1 + rows * case.accumulation * size // sum(lengths) + rows * case.accumulation))
    made: dict[str, list[tuple[Batch, int]]] = {kind: [] for kind in KINDS}
    for _ in range(case.accumulation):
        made["full"].append(batch_of([[size]] * rows, case))
        made["packed"].append(batch_of(packed_rows(endless, rows, size), case))
        made["padded"].append(batch_of([[next(endless)] for _ in range(rows)], case))
    return made


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Return how long some work takes, what it leaves to the GPU included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def train(engine: DeepSpeedEngine, case: GpuCase) -> dict[str, list[tuple[float, int, int]]]:
    """Return (seconds, useful tokens, computed tokens) of each kind's steps, which take turns."""
    samples: dict[str, list[tuple[float, int, int]]] = {kind: [] for kind in KINDS}
    batches = make_batches(case)
    for number in range(case.warmup + case.repeats):
        for kind in KINDS:
            labels = sum(int((batch.labels != IGNORE).sum()) for batch, _ in batches[kind])

            def step(chosen: str = kind, count: int = labels) -> None:
                for batch, _ in batches[chosen]:
                    engine.micro_step(batch, count)
                engine.step()

            seconds = timed(engine.device, step)
            useful = sum(tokens for _, tokens in batches[kind])
            computed = sum(batch.input_ids.size for batch, _ in batches[kind])
            if number >= case.warmup:
                samples[kind].append((seconds, useful, computed))
    return samples


def measure(case: GpuCase, device: str) -> dict[str, Any]:
    """Return what one case yields."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(case.memory, device, Path(folder))
        config = job.deepspeed | {
            "gradient_accumulation_steps": case.accumulation,
            "train_batch_size": case.accumulation * case.memory.micro_batch_size,
        }
        job = replace(job, deepspeed=config)
        where = compute_device(job.plan, local_rank=0)
        start_process_group(job)
        engine = DeepSpeedEngine(job, where, case.warmup + case.repeats)
        samples = train(engine, case)
    cuda = where.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "cpu", "attention": engine._attention, "samples": samples,
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "memory_gib": torch.cuda.mem_get_info()[1] / GIB if cuda else None,
    }  # fmt: skip


if __name__ == "__main__":
    print(MARK + json.dumps(measure(GpuCase.from_json(sys.argv[2]), sys.argv[1])), flush=True)
    os._exit(0)  # as a worker leaves: a gloo thread that outlives the interpreter would abort it
