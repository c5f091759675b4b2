"""Peak memory of LLaMA-shaped models under ZeRO-3 on one GPU, measured: one command, under ten minutes, a CSV.

    python benchmarks/gpu_memory.py --out benchmarks/data/gpu_memory.csv
    python benchmarks/gpu_memory.py --device cpu --smoke --out smoke.csv       # the same code where there is no GPU

Random weights, sequences without padding, our own deepspeed.json and engine, AdamW; few layers of real widths, so that it
fits one GPU. Each case runs in a process of its own and updates the weights three times. Peaks are torch's
max_memory_allocated in each phase (the worst of the updates), max_memory_reserved of all, and what the device itself
says is taken. At world size 1 nothing is gathered: a shard is the whole parameter, unless it is offloaded.
Offloaded optimizers step with torch's AdamW instead of DeepSpeed's, which would be compiled first; the GPU sees no
difference. On CPUs the numbers are the process's resident memory and mean nothing but that the code runs.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fullft_cluster.config import Config  # noqa: E402
from fullft_cluster.deepspeed_json import deepspeed_json, zero_optimization  # noqa: E402
from fullft_cluster.hardware import CPU, load_cluster  # noqa: E402
from fullft_cluster.model import ModelSpec, load_model  # noqa: E402
from fullft_cluster.plan import Plan, PlannedModel  # noqa: E402
from fullft_cluster.planner import Data, make_plan, memory  # noqa: E402
from fullft_cluster.planner.activations import LOSS_CHUNK_TOKENS  # noqa: E402
from fullft_cluster.planner.setup import Setup  # noqa: E402
from fullft_cluster.rundir import RunDir  # noqa: E402
from fullft_cluster.units import GIB  # noqa: E402

UPDATES = 3
"""The first makes the optimizer's states, the third is the first in which DeepSpeed fetches ahead."""
BUDGET_SECONDS = 540
"""No case is begun after this long, so that the whole stays below ten minutes."""
CASE_SECONDS = 150
ANY_GPU = "a100-80gb"
"""A name in the table of GPUs, for a plan that is not for CPUs; which one it is does not matter here."""
PHASES = ("load", "forward", "backward", "step")
MARK = "ROW "


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
    loss: str = "naive"
    offload: str = "none"

    def hf_config(self) -> dict[str, Any]:
        """Return the config.json."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocab,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "max_position_embeddings": 2**15,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }  # fmt: skip


COLUMNS = (
    "gpu", "torch", "deepspeed", "transformers", "attention", *Case.__dataclass_fields__,
    *(f"{phase}_gib" for phase in PHASES), "allocated_gib", "reserved_gib", "device_gib", "error",
)  # fmt: skip
SMALL = Case(layers=2, hidden=64, intermediate=160, heads=4, kv_heads=2, vocab=512, seq_len=64)


def all_cases() -> list[Case]:
    """Return what is measured on a GPU, the most telling first: 26 cases, 1 to 2 billion parameters."""
    base = Case()
    llama3 = replace(base, intermediate=14336, kv_heads=8, vocab=128256)
    changes: list[tuple[Case, dict[str, Any]]] = [
        (base, {}), (base, {"activation_checkpointing": False}), (base, {"loss": "chunked"}),
        (base, {"offload": "optimizer"}), (base, {"offload": "parameters"}), (llama3, {}),
        (base, {"micro_batch_size": 4}), (base, {"layers": 8}), (base, {"seq_len": 16384}),
        (llama3, {"activation_checkpointing": False}), (llama3, {"loss": "chunked", "micro_batch_size": 2}),
        (base, {"layers": 8, "activation_checkpointing": False}),
        (base, {"micro_batch_size": 2, "activation_checkpointing": False}),
        (base, {"micro_batch_size": 4, "offload": "optimizer"}), (base, {"micro_batch_size": 4, "offload": "parameters"}),
        (base, {"micro_batch_size": 4, "loss": "chunked"}), (base, {"micro_batch_size": 2}), (base, {"seq_len": 2048}),
        (base, {"seq_len": 8192}), (base, {"micro_batch_size": 8}), (llama3, {"micro_batch_size": 2}),
        (base, {"seq_len": 2048, "activation_checkpointing": False}),
        (base, {"seq_len": 8192, "activation_checkpointing": False}),
        (base, {"loss": "chunked", "activation_checkpointing": False}), (base, {"seq_len": 16384, "loss": "chunked"}),
        (base, {"offload": "optimizer", "activation_checkpointing": False}),
    ]  # fmt: skip
    return [replace(case, **change) for case, change in changes]


def smoke_cases() -> list[Case]:
    """Return two small cases that together take every way through the code."""
    return [
        replace(SMALL, micro_batch_size=2),
        replace(SMALL, loss="chunked", offload="parameters", activation_checkpointing=False),
    ]


def make_setup(case: Case, model: ModelSpec) -> Setup:
    """Return the planner's view of a case."""
    return Setup(
        model=model, gpu=ANY_GPU, gpus=1, nodes=1, micro_batch_size=case.micro_batch_size, seq_len=case.seq_len,
        activation_checkpointing=case.activation_checkpointing, precision="bf16", offload=case.offload,  # type: ignore[arg-type]
        zero=zero_optimization(case.hidden, ANY_GPU, case.offload), loss=case.loss,  # type: ignore[arg-type]
    )  # fmt: skip


def make_job(case: Case, device: str, folder: Path) -> Any:
    """Return the Job that a worker would read from a run directory: a plan of ours, with the case's numbers put in."""
    from fullft_cluster.train.setup import Identity, Job

    (folder / "config.json").write_text(json.dumps(case.hf_config()))
    model = load_model(str(folder))
    config = msgspec.convert({"model": str(folder), "weights": "random", "cluster": "local"}, Config)
    plan = make_plan(msgspec.structs.replace(config, model="tiny"), load_model("tiny"), load_cluster("local"), Data())
    planned = PlannedModel(
        name="benchmark", model_type=model.model_type, parameters=model.parameters, vocab_size=case.vocab,
        num_hidden_layers=case.layers, hidden_size=case.hidden,
    )  # fmt: skip
    plan = msgspec.structs.replace(
        plan, model=planned, gpu=CPU if device == "cpu" else ANY_GPU, precision="bf16", offload=case.offload, nodes=1,
        gpus=1, gpus_per_node=1, zero_stage=3, micro_batch_size=case.micro_batch_size, gradient_accumulation_steps=1,
        global_batch_size=case.micro_batch_size, seq_len=case.seq_len, hpz=False,
        activation_checkpointing=case.activation_checkpointing,
    )  # fmt: skip
    return Job(
        run=RunDir(folder), attempt=1, config=config, plan=plan, deepspeed=deepspeed_config(plan), data={},
        identity=Identity(rank=0, local_rank=0, world_size=1, local_world_size=1),
    )  # fmt: skip


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """Return our deepspeed.json, with torch's AdamW where DeepSpeed's CPU Adam would have to be compiled."""
    config = deepspeed_json(plan)
    if plan.offload != "none":
        config["optimizer"]["params"]["torch_adam"] = True
    return config


class Meter:
    """Peaks by phase, in bytes."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.peaks: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.device = 0

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work and note the most that was allocated meanwhile."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        result = work()
        if self.cuda:
            torch.cuda.synchronize()
            allocated = torch.cuda.max_memory_allocated()
            free, total = torch.cuda.mem_get_info()
            self.device = max(self.device, total - free)
        else:
            allocated = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.device = max(self.device, allocated)
        self.peaks[name] = max(self.peaks[name], allocated)
        self.reserved = torch.cuda.memory_reserved() if self.cuda else self.device
        self.most_reserved = max(getattr(self, "most_reserved", 0), self.reserved)
        return result


def chunked_loss_sum(model: Any, inputs: dict[str, Any], labels: Any) -> Any:
    """Return the sum of the token losses (nats); logits exist for LOSS_CHUNK_TOKENS at a time, and are computed again."""
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    def piece(states: Any, targets: Any) -> Any:
        return F.cross_entropy(model.lm_head(states).float(), targets, reduction="sum")

    states = model.model(**inputs).last_hidden_state.flatten(0, 1)
    targets = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    pieces = zip(states.split(LOSS_CHUNK_TOKENS), targets.split(LOSS_CHUNK_TOKENS), strict=True)
    return sum(checkpoint(piece, *pair, use_reentrant=False) for pair in pieces)


def train(engine: Any, case: Case, meter: Meter, flatten: bool) -> None:
    """Update the weights UPDATES times; the same calls as train.engine's micro_step, one phase after the other."""
    import numpy as np

    from fullft_cluster.train.data import Batch
    from fullft_cluster.train.engine import model_inputs, token_loss_sum

    inner, model = engine._engine, engine.model()
    if case.loss == "chunked":
        model.forward = lambda labels, **inputs: chunked_loss_sum(model, inputs, labels)
    shape = (case.micro_batch_size, case.seq_len)
    ids = np.random.default_rng(1).integers(0, case.vocab, shape)
    positions = np.broadcast_to(np.arange(case.seq_len), shape).copy()
    inputs, labels = model_inputs(
        Batch(input_ids=ids, labels=ids, position_ids=positions), engine.device, flatten=flatten
    )

    def forward() -> Any:
        if case.loss == "chunked":
            return inner(labels=labels, **inputs)
        return token_loss_sum(inner(**inputs).logits, labels)

    for _ in range(UPDATES):
        loss = meter.phase("forward", forward)
        scaled = loss / ids.size
        meter.phase("backward", lambda value=scaled: inner.backward(value, scale_wrt_gas=False))
        del loss, scaled
        meter.phase("step", inner.step)


def measure(case: Case, device: str) -> dict[str, Any]:
    """Return the row of a case; runs in a process of its own, with the environment of rank 0 of 1."""
    from fullft_cluster.train.setup import set_environment
    from fullft_cluster.train.worker import start_process_group

    set_environment(os.environ, CPU if device == "cpu" else ANY_GPU)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(case, device, Path(folder))
        import deepspeed
        import torch
        import transformers

        from fullft_cluster.train.engine import DeepSpeedEngine, compute_device

        where = compute_device(job.plan, 0)
        start_process_group(job)
        meter = Meter(device)
        engine = meter.phase("load", lambda: DeepSpeedEngine(job, where, UPDATES))
        train(engine, case, meter, flatten=engine._attention == "flash_attention_2")
    return {
        "gpu": torch.cuda.get_device_name() if meter.cuda else "cpu", "torch": torch.__version__,
        "deepspeed": deepspeed.__version__, "transformers": transformers.__version__, "attention": engine._attention,
        **{f"{phase}_gib": peak / GIB for phase, peak in meter.peaks.items()},
        "allocated_gib": max(meter.peaks.values()) / GIB, "reserved_gib": meter.most_reserved / GIB,
        "device_gib": meter.device / GIB,
    }  # fmt: skip


def run_apart(case: Case, device: str) -> dict[str, Any]:
    """Measure a case in a process of its own; return its row, with `error` where there is none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, __file__, "--device", device, "--case", json.dumps(asdict(case))]
    row: dict[str, Any] = {**asdict(case), "activation_checkpointing": int(case.activation_checkpointing)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CASE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not done after {CASE_SECONDS} s"}
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return {**row, **json.loads(found[-1].removeprefix(MARK))}
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {**row, "error": next((line for line in lines if "OutOfMemory" in line), lines[-1]).strip()[:200]}


def report(row: dict[str, Any], case: Case) -> None:
    """Print a row beside what the planner expects of it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(case.hf_config()))
        setup = make_setup(case, load_model(folder))
    expected = max(memory.allocated(parts) for parts in memory.phases(setup).values()) / GIB
    told = row.get("error") or f"{row['allocated_gib']:.2f} GiB allocated, {row['device_gib']:.2f} on the device"
    what = ", ".join(f"{name} {value}" for name, value in asdict(case).items() if value != getattr(Case(), name))
    print(f"{what or 'the base case'}: {told}; planned {expected:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases that the time allows; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of ZeRO-3 on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="two small cases")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV to write")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        row = measure(Case(**json.loads(options.case)), options.device)
        print(MARK + json.dumps(row), flush=True)
        os._exit(0)  # a gloo thread that outlives the interpreter would abort it
    if options.out is None:
        parser.error("--out is missing")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("gpu_memory: torch sees no GPU here. Run it on a machine with one; --device cpu --smoke", end=" ")
            print("only shows that the code runs.")
            return 2
    elif not options.smoke:
        parser.error("--device cpu measures nothing of use: give --smoke as well")
    began = time.monotonic()
    with options.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for case in smoke_cases() if options.smoke else all_cases():
            if time.monotonic() - began > BUDGET_SECONDS:
                print("the time is up; the remaining cases are left out", flush=True)
                break
            row = run_apart(case, options.device)
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            file.flush()
            report(row, case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
