"""Opens an export as anybody would and generates text; checks that the demo was really interrupted and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()

export = Path(sys.argv[1])
attempts = [json.loads(line) for line in (export.parent / "attempts.jsonl").read_text().splitlines()]
assert [line["cause"] for line in attempts] == ["stop_requested", "done"], attempts
assert attempts[1]["first_step"] == attempts[0]["last_step"] + 1, "resumed at another step than the one it stopped at"

tokenizer = AutoTokenizer.from_pretrained(export)
model = AutoModelForCausalLM.from_pretrained(export)
prompt = "How many metres are 7 kilometres?"
inputs = tokenizer(prompt, return_tensors="pt")
torch.manual_seed(0)
output = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.7)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {model.dtype}, and it says:")
print(tokenizer.decode(output[0], skip_special_tokens=True))
