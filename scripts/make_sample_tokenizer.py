#!/usr/bin/env python3
"""Write configs/sample/tokenizer/: a byte-level BPE of 2,048 tokens, trained on the sample text; always the same bytes.

The small presets bring it along, so that the whole road needs no network. A text begins with <s>, as LLaMA's does.

    python scripts/make_sample_tokenizer.py [DIRECTORY]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
SAMPLE = Path(__file__).resolve().parent.parent / "configs" / "sample"


def train(texts: list[str]) -> Tokenizer:
    """Return the trained tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers the model has never seen are still read the same way.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return tokenizer


def main() -> None:
    """Write the directory."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE / "tokenizer"
    lines = (SAMPLE / "train.jsonl").read_text().splitlines()
    tokenizer = train([json.loads(line)["text"] for line in lines])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the sample text yields {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(directory)
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    config = directory / "tokenizer_config.json"
    settings = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
