"""One way of preparing data, in a process of its own: what `benchmarks.prepare_throughput` starts."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from datasets import load_dataset
from datasets.utils.logging import disable_progress_bar
from transformers import AutoTokenizer
from trl import pack_dataset

from fullft_cluster.config import Config, DataConfig, TrainConfig
from fullft_cluster.train.prepare import make_cache, told
from fullft_cluster.train.tokenizer import encoder_settings, load_tokenizer, padding_id

TOKENIZER = Path(__file__).parents[1] / "configs" / "sample" / "tokenizer"
SEQ_LEN = 2048
Count = Callable[[], int]


def ours(kind: str, directory: Path, out: Path) -> Count:
    """Prepare as `fullft-cluster prepare` does; return what counts the tokens."""
    template = str(directory / "chat.jinja") if kind == "chat" else None
    config = Config(
        model="tiny", weights="random", train=TrainConfig(seq_len=SEQ_LEN),
        data=DataConfig(train=str(directory / f"{kind}.jsonl"), chat_template=template),
    )  # fmt: skip
    tokenizer = load_tokenizer(config)
    encoder = encoder_settings(config, tokenizer)
    cache = make_cache(out, config, encoder, padding_id(tokenizer, encoder))
    return lambda: int(told(cache)["tokens"])


def usual(packing: bool, directory: Path, out: Path) -> Count:
    """Tokenise by datasets.map with the usual function, and pack by TRL where asked for; return as `ours` does."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    rows = load_dataset("json", data_files=str(directory / "text.jsonl"), split="train", cache_dir=str(out))
    cores = len(os.sched_getaffinity(0))
    done = rows.map(
        lambda batch: tokenizer(batch["text"]), batched=True, num_proc=cores, remove_columns=rows.column_names
    )
    if packing:
        done = pack_dataset(done.select_columns("input_ids"), SEQ_LEN, "bfd", {"num_proc": cores})
    return lambda: sum(len(ids) for batch in done.iter(4096) for ids in batch["input_ids"])


CASES: dict[str, Callable[[Path, Path], Count]] = {
    "map": lambda directory, out: usual(False, directory, out),
    "map-pack": lambda directory, out: usual(True, directory, out),
    "text": lambda directory, out: ours("text", directory, out),
    "completion": lambda directory, out: ours("completion", directory, out),
    "chat": lambda directory, out: ours("chat", directory, out),
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(name: str, directory: str) -> None:
    """Run one case and print what it took."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=directory) as out:
        cpu, began = cpu_seconds(), time.perf_counter()
        count = CASES[name](Path(directory), Path(out) / "cache")
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        print(json.dumps({"tokens": count(), "seconds": seconds, "cpu_seconds": cpu}))
