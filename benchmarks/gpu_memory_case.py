"""One case of gpu_memory.py, as rank 0 of 1: python -m benchmarks.gpu_memory_case DEVICE CASE."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import msgspec
import numpy as np
import torch
import transformers

from benchmarks.gpu_memory import ANY_GPU, MARK, PHASES, Case
from fullft_cluster.config import Config
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.hardware import CPU, load_cluster
from fullft_cluster.model import load_model
from fullft_cluster.plan import PlannedModel
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.resources import share
from fullft_cluster.rundir import RunDir
from fullft_cluster.train.attention import model_inputs
from fullft_cluster.train.data import Batch
from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine
from fullft_cluster.train.engine import compute_device
from fullft_cluster.train.loss import loss_of
from fullft_cluster.train.setup import Identity, Job
from fullft_cluster.train.worker import start_process_group
from fullft_cluster.units import GIB

UPDATES = 3
"""The first makes the optimizer's states, the third is the first in which DeepSpeed fetches ahead."""


def make_job(case: Case, device: str, folder: Path) -> Job:
    """Return the Job that a worker would read from a run directory: a plan of ours, with the case's numbers put in.

    Where the optimizer is offloaded, torch's AdamW stands in for DeepSpeed's, which would be compiled first; the GPU
    sees no difference.
    """
    case.write_config(folder)
    model = load_model(str(folder))
    # Named, because random weights bring none; it has no more tokens than the smallest vocabulary measured.
    tokenizer = str(share("configs") / "sample" / "tokenizer")
    tiny = msgspec.convert({"model": "tiny", "weights": "random", "cluster": "local", "tokenizer": tokenizer}, Config)
    plan = make_plan(tiny, load_model("tiny"), load_cluster("local"), Data())
    planned = PlannedModel(
        name="benchmark", model_type=model.model_type, parameters=model.parameters, vocab_size=case.vocab,
        num_hidden_layers=case.layers, hidden_size=case.hidden,
    )  # fmt: skip
    plan = msgspec.structs.replace(
        plan, model=planned, gpu=CPU if device == "cpu" else ANY_GPU, precision="bf16", offload=case.offload, nodes=1,
        gpus=1, gpus_per_node=1, zero_stage=3, hpz=False, micro_batch_size=case.micro_batch_size,
        gradient_accumulation_steps=1, global_batch_size=case.micro_batch_size, seq_len=case.seq_len,
        activation_checkpointing=case.activation_checkpointing,
    )  # fmt: skip
    config = deepspeed_json(plan)
    config["optimizer"]["params"]["torch_adam"] = True
    return Job(
        run=RunDir(folder), attempt=1, config=msgspec.structs.replace(tiny, model=str(folder)), plan=plan,
        deepspeed=config, data={}, identity=Identity(rank=0, local_rank=0, world_size=1, local_world_size=1),
    )  # fmt: skip


class Meter:
    """Peaks, in bytes; on CPUs the resident memory at the end of each phase stands for them."""

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"
        self.allocated = dict.fromkeys(PHASES, 0)
        self.reserved = self.device = 0

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work, note the most that was allocated meanwhile, and return what the work returns."""
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        result = work()
        allocated, reserved, device = self._cuda_peaks() if self._cuda else self._resident()
        self.allocated[name] = max(self.allocated[name], allocated)
        self.reserved, self.device = max(self.reserved, reserved), max(self.device, device)
        return result

    def _cuda_peaks(self) -> tuple[int, int, int]:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free

    def _resident(self) -> tuple[int, int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return (pages * os.sysconf("SC_PAGE_SIZE"),) * 3


def make_batch(case: Case) -> Batch:
    """Return random tokens; each row is one document, so that attention needs no mask."""
    shape = (case.micro_batch_size, case.seq_len)
    ids = np.random.default_rng(1).integers(0, case.vocab, shape)
    return Batch(input_ids=ids, labels=ids, position_ids=np.broadcast_to(np.arange(case.seq_len), shape).copy())


def train(engine: DeepSpeedEngine, case: Case, meter: Meter) -> None:
    """Update the weights UPDATES times, by the calls of the engine's micro_step, one phase after the other."""
    inner = engine._engine
    batch = make_batch(case)
    inputs, labels = model_inputs(batch, engine.device, flatten=engine._attention == "flash_attention_2")

    def forward() -> torch.Tensor:
        return loss_of(inner, inputs, labels, case.loss) / labels.numel()

    for _ in range(UPDATES):
        losses = [meter.phase("forward", forward)]
        # Popped, so that nothing but the graph holds it.
        meter.phase("backward", lambda held=losses: inner.backward(held.pop(), scale_wrt_gas=False))
        meter.phase("step", inner.step)


def measure(case: Case, device: str) -> dict[str, Any]:
    """Return the columns of a row that the case does not hold."""
    meter = Meter(device)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(case, device, Path(folder))
        where = compute_device(job.plan, local_rank=0)
        start_process_group(job)
        engine = meter.phase("load", lambda: DeepSpeedEngine(job, where, UPDATES))
        train(engine, case, meter)
    return {
        "gpu": "cpu" if device == "cpu" else torch.cuda.get_device_name(), "torch": torch.__version__,
        "deepspeed": deepspeed.__version__, "transformers": transformers.__version__, "attention": engine._attention,
        **{f"{phase}_gib": peak / GIB for phase, peak in meter.allocated.items()},
        "allocated_gib": max(meter.allocated.values()) / GIB, "reserved_gib": meter.reserved / GIB,
        "device_gib": meter.device / GIB,
    }  # fmt: skip


if __name__ == "__main__":
    print(MARK + json.dumps(measure(Case(**json.loads(sys.argv[2])), sys.argv[1])), flush=True)
    os._exit(0)  # as a worker leaves: a gloo thread that outlives the interpreter would abort it
