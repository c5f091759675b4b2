"""How others train: transformers' Trainer on padded rows, TRL's SFTTrainer with packing, and Trainer on our blocks.

Each as its documentation shows it, with what a comparison has to hold equal: weights, tokenizer, text, learning rate,
tokens of a micro-batch at most, accumulation, precision, no gradient checkpointing, and our deepspeed.json.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import deepspeed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments
from transformers import Trainer as HfTrainer

from benchmarks.training_blocks import our_blocks
from benchmarks.training_case import Bench, Case
from benchmarks.training_turns import Turns

KEPT_BLOCKS = 64
"""Blocks that the Trainer on our data holds in memory; it goes through them again and again."""
INPUTS = ("input_ids", "labels", "position_ids")


class Counted:
    """A data collator that also counts the real tokens of each batch it makes."""

    def __init__(self, collate: Any, accumulation: int) -> None:
        self._collate, self._accumulation = collate, accumulation
        self._tokens: list[int] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch: dict[str, Any] = self._collate(examples)
        mask, real = batch.get("attention_mask"), batch.pop("real_tokens", None)
        if real is None:  # without a mask nothing is padded
            real = batch["input_ids"].numel() if mask is None else mask.sum()
        self._tokens.append(int(real))
        return batch

    def tokens(self, first: int, last: int) -> int:
        """Return the tokens of the steps [first, last); batches are made ahead of their step."""
        return sum(self._tokens[first * self._accumulation : last * self._accumulation])


class TakeTurns(TrainerCallback):
    """Reports steps, and waits between turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the first turn."""
        self._turns.facts["threads"] = torch.get_num_threads()
        self._turns.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count a step."""
        self._turns.step_done()


def arguments(bench: Bench, case: Case, *, sharded: bool) -> dict[str, Any]:
    """Return TrainingArguments' (and SFTConfig's) arguments."""
    config = bench.deepspeed()
    # Trainer looks for the number of processes before they are connected, and would take it for 1.
    del config["train_batch_size"]
    optimizer = config["optimizer"]["params"]
    return {
        "output_dir": str(bench.path / "others"), "max_steps": case.max_steps, "use_cpu": True,
        "per_device_train_batch_size": case.micro_batch_size, "gradient_accumulation_steps": case.accumulation,
        "learning_rate": optimizer["lr"], "weight_decay": optimizer["weight_decay"],
        "adam_beta1": optimizer["betas"][0], "adam_beta2": optimizer["betas"][1], "adam_epsilon": optimizer["eps"],
        "max_grad_norm": config["gradient_clipping"], "lr_scheduler_type": "cosine", "save_strategy": "no",
        "bf16": case.precision == "bf16", "gradient_checkpointing": case.activation_checkpointing, "seed": case.seed,
        "report_to": "none", "disable_tqdm": True, "deepspeed": copy.deepcopy(config) if sharded else None,
    }  # fmt: skip


def load(bench: Bench, case: Case) -> Any:
    """Return the model; sharded as it is loaded where TrainingArguments with DeepSpeed are alive."""
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(bench.model, dtype=dtype)


def text_rows(bench: Bench) -> Any:
    """Return the rows as a data set."""
    from datasets import load_dataset  # noqa: PLC0415

    return load_dataset("json", data_files=str(bench.text), split="train", cache_dir=str(bench.path / "datasets"))


def padded(bench: Bench, case: Case, *, sharded: bool) -> HfTrainer:
    """The usual recipe: https://huggingface.co/docs/transformers/tasks/language_modeling, padded to max_length.

    The end of a row is marked, as it has to be for a model that is to stop.
    """
    from transformers import DataCollatorForLanguageModeling  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    settings = TrainingArguments(**arguments(bench, case, sharded=sharded))

    def tokenize(rows: dict[str, list[str]]) -> Any:
        texts = [text + tokenizer.eos_token for text in rows["text"]]
        return tokenizer(texts, padding="max_length", truncation=True, max_length=case.seq_len)

    rows = text_rows(bench).map(tokenize, batched=True, remove_columns=["text"])
    return HfTrainer(
        model=load(bench, case), args=settings, train_dataset=rows, processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip


def sft(bench: Bench, case: Case, *, sharded: bool) -> HfTrainer:
    """TRL: https://huggingface.co/docs/trl/sft_trainer, `packing=True`, best fit (its default strategy)."""
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    settings = SFTConfig(**arguments(bench, case, sharded=sharded), packing=True, max_length=case.seq_len)
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    return SFTTrainer(
        model=load(bench, case), args=settings, train_dataset=text_rows(bench), processing_class=tokenizer
    )


def trainer_on_our_blocks(bench: Bench, case: Case, *, sharded: bool) -> HfTrainer:
    """Transformers' Trainer and nothing of ours but the packed blocks, which lie in memory."""
    settings = TrainingArguments(**arguments(bench, case, sharded=sharded))
    data, order = our_blocks(bench)
    blocks = [order.step(step)[:1] for step in range(KEPT_BLOCKS)]
    rows = [
        {
            **{name: torch.from_numpy(getattr(data.batch(block), name)[0]) for name in INPUTS},
            "real_tokens": data.tokens_in(block),
        }
        for block in blocks
    ]

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {name: torch.stack([example[name] for example in examples]) for name in INPUTS}
        return {**batch, "real_tokens": sum(example["real_tokens"] for example in examples)}

    model = load(bench, case)
    # With a cache, or a mask of ones, attention would cross documents.
    model.config.use_cache = False
    # Else the Trainer takes away what no model's forward names.
    settings.remove_unused_columns = False
    return HfTrainer(model=model, args=settings, train_dataset=rows, data_collator=collate)


WAYS = {"padded": padded, "sft": sft, "trainer": trainer_on_our_blocks}


def run(way: str, bench: Bench, turns: Turns) -> None:
    """Train until the parent wants no more."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Compiled at its first use (25 s, and a compiler); ours goes without, too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    case = bench.case
    torch.set_num_threads(torch.get_num_threads())
    trainer = WAYS[way.removesuffix("-plain")](bench, case, sharded=not way.endswith("-plain"))
    counted = Counted(trainer.data_collator, case.accumulation)
    trainer.data_collator = counted
    turns.count_tokens(counted.tokens)
    trainer.add_callback(TakeTurns(turns))
    trainer.train()
