"""The part of the benchmark of training for one GPU: MFU of a 7B-shaped slice, memory against the plan, packing.

    python -m benchmarks.training --gpu                 # where there is a GPU, under ten minutes
    python -m benchmarks.training --gpu --quick DIR     # the same code on CPUs, small; its figures mean nothing

Layers of LLaMA-7B's width, as many as fit, in bf16 by our own engine and deepspeed.json. Three kinds of steps take
turns: `full` (a row is one document: MFU), `packed` (documents of the text's lengths, attention by varlen kernels where
flash-attn is installed) and `padded` (one document a row).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_memory import MARK, planned_gib, sees_gpu, smoke_cases
from benchmarks.gpu_memory import Case as MemoryCase
from benchmarks.tables import percent, share, table
from benchmarks.training_case import ROOT
from benchmarks.training_page import times
from benchmarks.training_stats import Spread, spread
from benchmarks.training_turns import free_port
from fullft_cluster.hardware import gpus, load_gpu
from fullft_cluster.inventory.gpu_names import match
from fullft_cluster.model import load_model
from fullft_cluster.planner.speed import flops_per_token

KINDS = ("full", "packed", "padded")
CASE_SECONDS = 150


@dataclass(frozen=True)
class GpuCase:
    """A model's slice and its batch, as benchmarks/gpu_memory.py has it, and how often it is measured."""

    memory: MemoryCase = field(default_factory=MemoryCase)
    accumulation: int = 4
    warmup: int = 2
    repeats: int = 7

    @staticmethod
    def from_json(text: str) -> GpuCase:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return GpuCase(**{**values, "memory": MemoryCase(**values["memory"])})

    def to_json(self) -> str:
        """Return the case as the child takes it."""
        return json.dumps(asdict(self))


def all_cases() -> list[GpuCase]:
    """Return what is measured on a GPU, the most telling first."""
    seven = MemoryCase(layers=8, loss="chunked")
    return [
        GpuCase(replace(seven, **changes))
        for changes in (
            {"micro_batch_size": 4},
            {"micro_batch_size": 2, "activation_checkpointing": False},
            {"micro_batch_size": 1},
            {"seq_len": 2048, "micro_batch_size": 8},
            {"intermediate": 14336, "kv_heads": 8, "vocab": 128256, "micro_batch_size": 2},
        )
    ]


def quick_cases() -> list[GpuCase]:
    """Return one case that takes every way through the code on CPUs."""
    return [GpuCase(replace(smoke_cases()[0], seq_len=512), accumulation=2, warmup=1, repeats=2)]


def run_apart(case: GpuCase, device: str) -> dict[str, Any]:
    """Measure a case in a process of its own; return what it yields, or its `error`."""
    environment = {
        **os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "benchmarks.training_gpu_case", device, case.to_json()]
    made: dict[str, Any] = {"case": asdict(case)}
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=CASE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {**made, "error": f"not done after {CASE_SECONDS} s"}
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return {**made, **json.loads(found[-1].removeprefix(MARK))}
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {**made, "error": next((line for line in lines if "OutOfMemory" in line), lines[-1]).strip()[:200]}


def measure(*, quick: bool, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the raw samples of all cases. Raises RuntimeError where there is no GPU and it is not `quick`."""
    if not quick and not sees_gpu():
        raise RuntimeError("torch sees no GPU here; --quick DIR shows on CPUs that the code runs")
    made = []
    for case in quick_cases() if quick else all_cases():
        made.append(run_apart(case, "cpu" if quick else "cuda"))
        tell(f"{told(case)}: {made[-1].get('error', 'measured')}")
    return made


def told(case: GpuCase) -> str:
    """Return a case in words."""
    own = case.memory
    kept = "recomputed" if own.activation_checkpointing else "all kept"
    size = f"{own.layers} layers of {own.hidden}, vocabulary {own.vocab:,}"
    return f"{size}, {own.micro_batch_size} x {own.seq_len} tokens, accumulation {case.accumulation}, {kept}"


def useful_speeds(samples: list[tuple[float, int, int]]) -> list[float]:
    """Return useful tokens a second of each step."""
    return [useful / seconds for seconds, useful, _ in samples]


def mfu(row: dict[str, Any]) -> Spread | None:
    """Return the share of the GPU's dense bf16 peak that full rows reach; None for a GPU that is not in the table."""
    found = match(row["gpu"], gpus(), (), row["memory_gib"]).gpu if row["memory_gib"] else None
    if found is None:
        return None
    case = GpuCase.from_json(json.dumps(row["case"]))
    with tempfile.TemporaryDirectory() as folder:
        case.memory.write_config(Path(folder))
        flops = flops_per_token(load_model(folder), case.memory.seq_len, recompute=False)
    peak = load_gpu(found).peak_tflops * 1e12
    return spread([speed * flops / peak for speed in useful_speeds(row["samples"]["full"])])


NONE_YET = [
    "## Training on one GPU",
    "",
    "None yet: it takes a GPU, which was not at hand. `python -m benchmarks.training --gpu` measures MFU of a slice of",
    "7B, memory against the plan, and packing with varlen attention against padding, in under ten minutes.",
]


def lines(raw: list[dict[str, Any]] | None) -> list[str]:
    """Return the section of docs/benchmarks.md; raw samples are None where nothing was measured."""
    if raw is None:
        return NONE_YET
    rows, failed = [], []
    for row in raw:
        case = GpuCase.from_json(json.dumps(row["case"]))
        if "error" in row:
            failed.append(f"- {told(case)}: {row['error']}")
            continue
        reached, measured = mfu(row), row["allocated_gib"]
        packed, padded = (useful_speeds(row["samples"][kind]) for kind in ("packed", "padded"))
        planned = planned_gib(case.memory)
        rows.append((
            told(case), share(reached.median) if reached else "",
            "" if measured is None else f"{measured:.1f}", f"{planned:.1f}",
            "" if measured is None else percent(planned / measured - 1),
            f"{spread(packed).median:,.0f}", f"{spread(padded).median:,.0f}",
            times(spread([ours / other for ours, other in zip(packed, padded, strict=True)])),
        ))  # fmt: skip
    first = next((row for row in raw if "error" not in row), {"gpu": "no GPU", "attention": "none"})
    head = (
        "case", "MFU, full rows", "peak GiB", "planned GiB", "error", "packed, useful tokens/s", "padded", "ratio"
    )  # fmt: skip
    return [
        "## Training on one GPU", "",
        f"{first['gpu']}, attention {first['attention']}, bf16, ZeRO-3 with one process, slices of LLaMA's layers.", "",
        *table(head, rows), *(["", "Not measured:", "", *failed] if failed else []),
    ]  # fmt: skip
