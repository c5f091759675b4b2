"""What is measured: a model, its text, the batch, and the run directory that all candidates read.

One case is shared by all candidates of a comparison: weights, tokenizer, rows in one file, the DeepSpeed configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from fullft_cluster.rundir import RunDir, write_json

ROOT = Path(__file__).resolve().parents[1]
FOREVER = 10**6
"""Optimizer steps of a run that the benchmark ends."""


@dataclass(frozen=True)
class Case:
    """A model, a batch and a machine's share; the same for every candidate."""

    layers: int = 6
    hidden: int = 256
    intermediate: int = 688
    heads: int = 4
    kv_heads: int = 4
    seq_len: int = 2048
    micro_batch_size: int = 1
    accumulation: int = 1
    processes: int = 2
    engine: str = "deepspeed"
    zero_stage: int | None = None
    """Default our plan's own choice, 3."""
    log_steps: int = 1
    """Steps between lines of metrics.jsonl; our default."""
    precision: str = "fp32"
    activation_checkpointing: bool = False
    rows: int = 7473
    """Rows of the text at most."""
    max_steps: int = FOREVER
    seed: int = 7

    @property
    def global_batch_size(self) -> int:
        """Return the sequences of an optimizer step."""
        return self.micro_batch_size * self.accumulation * self.processes

    def shape(self, vocab_size: int) -> dict[str, Any]:
        """Return the model's config.json."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": max(self.seq_len, 2048), "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }  # fmt: skip


class Bench:
    """The directory of one case: `model/`, `text.jsonl`, `run/` (a run directory), `case.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.text, self.run = path / "model", path / "text.jsonl", RunDir(path / "run")

    @property
    def case(self) -> Case:
        """Read the case back."""
        return Case(**json.loads((self.path / "case.json").read_text()))

    def deepspeed(self) -> dict[str, Any]:
        """Return the run's own deepspeed.json."""
        found: dict[str, Any] = json.loads(self.run.deepspeed.read_text())
        return found


def find_text() -> Path:
    """Return GSM8K's training split where it lies beside the checkout, else the text that is shipped."""
    folders = (os.environ.get("FULLFT_CLUSTER_SHARED"), ROOT.parent / "shared")
    for folder in folders:
        if folder and (path := Path(folder) / "data" / "gsm8k_train.jsonl").is_file():
            return path
    return share("configs") / "sample" / "train.jsonl"


def texts(path: Path, rows: int) -> Iterator[str]:
    """Yield the whole text of each row: what every candidate learns, to the last token."""
    with path.open(encoding="utf-8") as file:
        for _, line in zip(range(rows), file, strict=False):
            row = json.loads(line)
            yield row["text"] if "text" in row else f"{row['question']}\n{row['answer']}"


def make_bench(path: Path, case: Case) -> Bench:
    """Write all that a comparison reads: weights, rows, and a run directory as `submit` and `prepare` leave it."""
    bench = Bench(path)
    bench.run.make()
    (path / "case.json").write_text(json.dumps(asdict(case)))
    with bench.text.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(find_text(), case.rows))
    write_weights(bench.model, case)
    config = run_config(bench, case)
    bench.run.config.write_text(yaml.safe_dump(config))
    typed = msgspec.convert(config, Config)
    plan = make_plan(typed, load_model(str(bench.model)), load_cluster("local"), Data(rows=case.rows))
    bench.run.plan.write_bytes(plan.to_json())
    if case.engine == "deepspeed":
        write_json(bench.run.deepspeed, deepspeed_json(plan))
    bench.run.update_run(attempt=1)
    from fullft_cluster.train.prepare import prepare_run  # noqa: PLC0415  heavy, and the parent needs it here alone

    prepare_run(str(bench.run.path))
    return bench


def write_weights(folder: Path, case: Case) -> None:
    """Write random weights with the shipped tokenizer."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(str(share("configs") / "sample" / "tokenizer"))
    torch.manual_seed(case.seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**case.shape(len(tokenizer)))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_config(bench: Bench, case: Case) -> dict[str, Any]:
    """Return the run's config.yaml; what it leaves out has our defaults."""
    return {
        "model": str(bench.model), "weights": str(bench.model), "cluster": "local",
        "data": {"train": str(bench.text), "cache_dir": str(bench.path / "cache")},
        "train": {
            "seq_len": case.seq_len, "global_batch_size": case.global_batch_size, "learning_rate": 1e-4,
            "max_steps": case.max_steps, "seed": case.seed, "precision": case.precision,
        },
        "resources": {
            "nodes": 1, "gpus_per_node": case.processes, "micro_batch_size": case.micro_batch_size,
            "activation_checkpointing": case.activation_checkpointing, "engine": case.engine,
            "zero_stage": case.zero_stage,
        },
        "output": {"save_steps": FOREVER * 10, "log_steps": case.log_steps},
    }  # fmt: skip
