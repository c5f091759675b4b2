"""Peak memory of LLaMA-shaped models under ZeRO-3 on one GPU, measured: one command, under ten minutes, a CSV.

    python -m benchmarks.gpu_memory --out benchmarks/data/gpu_memory.csv
    python -m benchmarks.gpu_memory --device cpu --smoke --out smoke.csv     # the same code where there is no GPU

Random weights, sequences without padding, our own deepspeed.json and engine, AdamW; few layers of real widths, so that
it fits one GPU. Each case runs in a process of its own (gpu_memory_case.py) and updates the weights three times. Peaks
are torch's max_memory_allocated in each phase (the worst of the updates), the most that it reserved, and what the
device itself says is taken. At world size 1 nothing is gathered: a shard is the whole parameter, unless it is
offloaded. On CPUs the numbers are the process's resident memory and mean nothing but that the code runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fullft_cluster.deepspeed_json import zero_optimization
from fullft_cluster.model import load_model
from fullft_cluster.plan import Loss, Offload
from fullft_cluster.planner import memory
from fullft_cluster.planner.setup import Setup
from fullft_cluster.units import GIB

ROOT = Path(__file__).resolve().parents[1]
BUDGET_SECONDS = 540
"""No case is begun after this long, so that the whole stays below ten minutes."""
CASE_SECONDS = 150
ANY_GPU = "a100-80gb"
"""A name in the table of GPUs, for a plan that is not for CPUs; which one it is does not matter here."""
PHASES = ("load", "forward", "backward", "step")
MARK = "ROW "
"""What the line with a case's result begins with."""


@dataclass(frozen=True)
class Case:
    """What one row measures. The sizes default to LLaMA-7B's, with fewer layers."""

    layers: int = 4
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocab: int = 32000
    seq_len: int = 4096
    micro_batch_size: int = 1
    activation_checkpointing: bool = True
    loss: Loss = "naive"
    offload: Offload = "none"

    def write_config(self, folder: Path) -> None:
        """Write the model's config.json."""
        config = {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocab,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "max_position_embeddings": 2**15,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))


COLUMNS = (
    "gpu", "torch", "deepspeed", "transformers", "attention", *(field.name for field in fields(Case)),
    *(f"{phase}_gib" for phase in PHASES), "allocated_gib", "reserved_gib", "device_gib", "error",
)  # fmt: skip


def all_cases() -> list[Case]:
    """Return what is measured on a GPU, the most telling first: 26 cases, 1 to 2 billion parameters."""
    seven = Case()
    llama3 = Case(intermediate=14336, kv_heads=8, vocab=128256)
    kept: dict[str, Any] = {"activation_checkpointing": False}
    changes: list[tuple[Case, dict[str, Any]]] = [
        (seven, {}), (seven, kept), (seven, {"loss": "chunked"}), (seven, {"offload": "optimizer"}),
        (seven, {"offload": "parameters"}), (llama3, {}), (seven, {"micro_batch_size": 4}), (seven, {"layers": 8}),
        (seven, {"seq_len": 16384}), (llama3, kept), (llama3, {"loss": "chunked", "micro_batch_size": 2}),
        (seven, {"layers": 8, **kept}), (seven, {"micro_batch_size": 2, **kept}),
        (seven, {"micro_batch_size": 4, "offload": "optimizer"}),
        (seven, {"micro_batch_size": 4, "offload": "parameters"}),
        (seven, {"micro_batch_size": 4, "loss": "chunked"}), (seven, {"micro_batch_size": 2}),
        (seven, {"seq_len": 2048}), (seven, {"seq_len": 8192}), (seven, {"micro_batch_size": 8}),
        (llama3, {"micro_batch_size": 2}), (seven, {"seq_len": 2048, **kept}), (seven, {"seq_len": 8192, **kept}),
        (seven, {"loss": "chunked", **kept}), (seven, {"seq_len": 16384, "loss": "chunked"}),
        (seven, {"offload": "optimizer", **kept}),
    ]  # fmt: skip
    return [replace(case, **change) for case, change in changes]


def smoke_cases() -> list[Case]:
    """Return two small cases that together take every way through the code."""
    small = Case(layers=2, hidden=64, intermediate=160, heads=4, kv_heads=2, vocab=2048, seq_len=64)
    return [
        replace(small, micro_batch_size=2),
        replace(small, seq_len=1536, loss="chunked", offload="parameters", activation_checkpointing=False),
    ]


def planned_gib(case: Case) -> float:
    """Return what the planner expects torch.cuda.max_memory_allocated to say, in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        case.write_config(Path(folder))
        setup = Setup(
            model=load_model(folder), gpu=ANY_GPU, gpus=1, nodes=1, micro_batch_size=case.micro_batch_size,
            seq_len=case.seq_len, activation_checkpointing=case.activation_checkpointing, precision="bf16",
            offload=case.offload, zero=zero_optimization(case.hidden, ANY_GPU, case.offload), loss=case.loss,
        )  # fmt: skip
    return max(memory.allocated(parts) for parts in memory.phases(setup).values()) / GIB


def run_apart(case: Case, device: str) -> dict[str, Any]:
    """Measure a case in a process of its own; return its row, with `error` where there is no result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "benchmarks.gpu_memory_case", device, json.dumps(asdict(case))]
    row: dict[str, Any] = {**asdict(case), "activation_checkpointing": int(case.activation_checkpointing)}
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=CASE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not done after {CASE_SECONDS} s"}
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return {**row, **json.loads(found[-1].removeprefix(MARK))}
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {**row, "error": next((line for line in lines if "OutOfMemory" in line), lines[-1]).strip()[:200]}


def tell(row: dict[str, Any], case: Case) -> None:
    """Print a row beside what the planner expects of it."""
    told = row.get("error") or f"{row['allocated_gib']:.2f} GiB allocated, {row['device_gib']:.2f} on the device"
    what = ", ".join(f"{name} {value}" for name, value in asdict(case).items() if value != getattr(Case(), name))
    print(f"{what or 'the first case'}: {told}; planned {planned_gib(case):.2f}", flush=True)


def measure_all(cases: Sequence[Case], device: str, out: Path) -> int:
    """Write a row for each case that the time allows; return how many of them have an error."""
    began, errors = time.monotonic(), 0
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for number, case in enumerate(cases):
            if time.monotonic() - began > BUDGET_SECONDS:
                print(f"the time is up: {len(cases) - number} cases are left out", flush=True)
                break
            row = run_apart(case, device)
            errors += "error" in row
            writer.writerow({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            file.flush()
            tell(row, case)
    return errors


def sees_gpu() -> bool:
    """Return whether torch has a GPU; in a process of its own, because looking takes some of the GPU's memory."""
    look = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all cases were measured, 1 when some were not, 2 when there is nothing to measure on."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of ZeRO-3 on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="two small cases, to see that the code runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the CSV to write")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.smoke:
        parser.error("CPUs say nothing of a GPU's memory; give --smoke to see that the code runs")
    if options.device == "cuda" and not sees_gpu():
        print(
            "gpu_memory: torch sees no GPU. Run it where there is one; --device cpu --smoke shows that the code runs."
        )
        return 2
    cases = smoke_cases() if options.smoke else all_cases()
    return int(measure_all(cases, options.device, options.out) > 0)


if __name__ == "__main__":
    sys.exit(main())
