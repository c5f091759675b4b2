"""The tokenizer of a run: the one that the model preset brings, else the one that lies with the weights."""

from __future__ import annotations

import hashlib
from typing import Any

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.model import ModelSpec, load_model


def tokenizer_source(config: Config, spec: ModelSpec) -> str:
    """Return the directory or hub id to load the tokenizer from. Raises UsageError when there is none."""
    candidates = (spec.tokenizer, config.weights, spec.weights)
    for candidate in candidates:
        if candidate and candidate != "random":
            return candidate
    fix = "Give weights that bring a tokenizer."
    raise UsageError(Problem("weights", f"{config.model} with random weights has no tokenizer", fix))


def load_tokenizer(config: Config) -> Any:
    """Return the tokenizer. Raises UsageError when it cannot be loaded, has no EOS, or does not fit the model."""
    from transformers import AutoTokenizer

    spec = load_model(config.model or "")
    source = tokenizer_source(config, spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(source, f"its tokenizer cannot be loaded ({_first_line(error)})")) from error
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise UsageError(Problem(source, "has no fast tokenizer", "Add its tokenizer.json."))
    if tokenizer.eos_token_id is None:
        fix = "Set eos_token in its tokenizer_config.json; a model learns to stop by it."
        raise UsageError(Problem(source, "its tokenizer has no EOS token", fix))
    if tokenizer.eos_token_id >= spec.vocab_size:
        what = f"its EOS token {tokenizer.eos_token_id} is outside the model's vocabulary of {spec.vocab_size}"
        raise UsageError(Problem(source, what, "Use the tokenizer that belongs to the model."))
    return tokenizer


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of all that decides which ids a text becomes."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
