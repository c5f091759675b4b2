"""A small run directory, and real training processes on it: two ranks, gloo, started as the node agent starts them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from fullft_cluster.config import Config
from fullft_cluster.deepspeed_json import deepspeed_json
from fullft_cluster.hardware import load_cluster
from fullft_cluster.model import load_model
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.resources import share
from fullft_cluster.rundir import RunDir, read_lines

ROOT = Path(__file__).resolve().parents[2]
TEXT = share("configs") / "sample" / "train.jsonl"
TOKENIZER = share("configs") / "sample" / "tokenizer"
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
DEADLINE_SECONDS = 120
STEPS = 40


@dataclass
class Shape:
    """What a test varies of a run."""

    world_size: int = 2
    micro_batch_size: int = 2
    global_batch_size: int = 8
    seq_len: int = 64
    max_steps: int | None = STEPS
    rows: int = 120
    recompute: bool = True
    hf: dict[str, Any] = field(default_factory=dict)


class Training:
    """A run directory, and the attempts on it."""

    def __init__(self, path: Path, cache: Path, shape: Shape) -> None:
        self.run = RunDir(path)
        self.shape = shape
        self.attempt = 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self.run.make()
        text = path.parent / f"{path.name}.jsonl"
        text.write_text("".join(line + "\n" for line in TEXT.read_text().splitlines()[: shape.rows]))
        model = random_weights(cache, {**SHAPE, **shape.hf})
        self.config: dict[str, Any] = {
            "model": str(model), "weights": str(model), "cluster": "local",
            "data": {"train": str(text), "cache_dir": str(cache)},
            "train": {
                "seq_len": shape.seq_len, "global_batch_size": shape.global_batch_size, "learning_rate": 1e-3,
                "epochs": 1, "max_steps": shape.max_steps, "warmup_ratio": 0.1, "seed": 7, "precision": "fp32",
            },
            "resources": {
                "nodes": 1, "gpus_per_node": shape.world_size, "micro_batch_size": shape.micro_batch_size,
                "activation_checkpointing": shape.recompute,
            },
            "output": {"save_steps": 10},
        }  # fmt: skip
        self.write_files()

    def write_files(self) -> None:
        """Plan the run and write what `submit` writes."""
        self.run.config.write_text(yaml.safe_dump(self.config))
        config = msgspec.convert(self.config, Config)
        plan = make_plan(config, load_model(self.config["model"]), load_cluster("local"), Data(rows=self.shape.rows))
        self.run.plan.write_bytes(plan.to_json())
        if plan.engine == "deepspeed":
            self.run.deepspeed.write_text(json.dumps(deepspeed_json(plan)))

    def copy(self, path: Path) -> Training:
        """Return a copy of the run as it stands, for a test to go on with."""
        other = copy.copy(self)
        shutil.copytree(self.run.path, path)
        other.run, other.shape, other.config = RunDir(path), copy.copy(self.shape), copy.deepcopy(self.config)
        return other

    def prepare(self) -> None:
        """Tokenise and pack, in this process (its imports are the slow part)."""
        from fullft_cluster.train.prepare import prepare_run

        prepare_run(str(self.run.path))

    def start(self, *, sitecustomize: Path | None = None, current_attempt: int | None = None) -> None:
        """Start one attempt's workers; `sitecustomize` is a directory whose module of that name is imported first."""
        self.attempt += 1
        self.run.update_run(attempt=current_attempt or self.attempt)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.shape.world_size):
            path = os.pathsep.join(filter(None, (str(sitecustomize or ""), str(ROOT))))
            environment = {**os.environ, **rank_environment(rank, self.shape.world_size, port), "PYTHONPATH": path}
            with (self.run.logs / f"attempt-{self.attempt}-rank-{rank}.log").open("wb") as log:
                command = [
                    sys.executable, "-m", "fullft_cluster.train.worker", "--run", str(self.run.path),
                    "--attempt", str(self.attempt),
                ]  # fmt: skip
                process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            self.processes.append(process)

    def wait(self) -> list[int]:
        """Return the exit codes by rank."""
        return [process.wait(DEADLINE_SECONDS) for process in self.processes[-self.shape.world_size :]]

    def train(self, **options: Any) -> list[int]:
        self.start(**options)
        return self.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be true while the workers live."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log()
            assert all(process.poll() is None for process in self.processes[-self.shape.world_size :]), self.log()
            time.sleep(0.005)

    def interrupt(self, step: int, action: Callable[[], object]) -> None:
        """Do something in mid run: at this step, or a few later, with all ranks frozen meanwhile."""
        self.until(lambda: self.step() >= step)
        for rank in range(self.shape.world_size):
            self.signal(rank, signal.SIGSTOP)
        assert self.step() < STEPS, "too late to interrupt it"
        action()
        for rank in range(self.shape.world_size):
            self.signal(rank, signal.SIGCONT)

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank - self.shape.world_size].send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def step(self) -> int:
        return max((line["step"] for line in read_lines(self.run.metrics)), default=0)

    def losses(self) -> dict[int, tuple[float, float, float]]:
        """Return (loss, gradient norm, learning rate) by step; of a step done twice the last."""
        lines = [line for line in read_lines(self.run.metrics) if "loss" in line]
        return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in lines}

    def report(self, rank: int = 0) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.run.exits(self.attempt) / f"rank-{rank}.json").read_text())
        return result

    def log(self) -> str:
        logs = sorted(self.run.logs.glob(f"attempt-{self.attempt}-*"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def weights(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        found: dict[str, Any] = {}
        for shard in self.run.export.glob("*.safetensors"):
            found |= load_file(shard)
        return found


def run_ranks(folder: Path, script: Path, arguments: list[str], ranks: int = 2) -> None:
    """Run a script as so many ranks of one job; its logs go to the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **rank_environment(rank, ranks, port), "PYTHONPATH": str(ROOT)}
        with (folder / f"rank-{rank}.log").open("wb") as log:
            command = [sys.executable, str(script), *arguments]
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [process.wait(DEADLINE_SECONDS) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    logs = "\n".join((folder / f"rank-{rank}.log").read_text(errors="replace")[-4000:] for rank in range(ranks))
    assert codes == [0] * ranks, logs


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return what the node agent sets for a worker."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def random_weights(cache: Path, config: dict[str, Any]) -> Path:
    """Return a directory with a model of this shape and the sample tokenizer, made once."""
    import hashlib

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = cache / f"model-{hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]}"
    if not path.exists():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(path)
        AutoTokenizer.from_pretrained(str(TOKENIZER)).save_pretrained(path)
    return path
