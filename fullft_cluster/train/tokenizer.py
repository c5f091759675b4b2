"""The tokenizer of a run: the one that it names, else the model preset's, else the one that lies with the weights."""

from __future__ import annotations

from typing import Any

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.model import ModelSpec, load_model
from fullft_cluster.train.encoder import EncoderSettings
from fullft_cluster.weights import read_template

ROWS_MULTIPLE = 64


def spec_of(config: Config) -> ModelSpec | None:
    """Return the model's shape; None where a tokenizer alone is named, which is enough to look at data."""
    return None if config.model is None and config.tokenizer else load_model(config.model or "")


def tokenizer_source(config: Config, spec: ModelSpec | None) -> str:
    """Return the directory or hub id to load the tokenizer from. Raises UsageError when there is none."""
    candidates = [config.tokenizer, config.weights]
    if spec is not None:
        candidates[1:1] = [spec.tokenizer]
        candidates.append(spec.weights)
    for candidate in candidates:
        if candidate and candidate != "random":
            return candidate
    fix = "Give weights that bring a tokenizer."
    raise UsageError(Problem("weights", f"{config.model} with random weights has no tokenizer", fix))


def load_tokenizer(config: Config) -> Any:
    """Return the tokenizer. Raises UsageError when it cannot be loaded, has no EOS, or does not fit the model."""
    from transformers import AutoTokenizer

    source = tokenizer_source(config, spec_of(config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(source, f"its tokenizer cannot be loaded ({_first_line(error)})")) from error
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise UsageError(Problem(source, "has no fast tokenizer", "Add its tokenizer.json."))
    if tokenizer.eos_token_id is None:
        fix = "Set eos_token in its tokenizer_config.json; a model learns to stop by it."
        raise UsageError(Problem(source, "its tokenizer has no EOS token", fix))
    vocabulary = vocabulary_size(config, tokenizer)
    if tokenizer.eos_token_id >= vocabulary:
        what = f"its EOS token {tokenizer.eos_token_id} is outside the model's vocabulary of {vocabulary}"
        raise UsageError(Problem(source, what, "Use the tokenizer that belongs to the model."))
    if config.data.chat_template:
        tokenizer.chat_template = read_template(config.data.chat_template)
    return tokenizer


def vocabulary_size(config: Config, tokenizer: Any) -> int:
    """Return how many rows the embeddings have in training: the model's, or more where the tokenizer adds tokens.

    Any tokenizer may that was named beside the model; else only one whose own vocabulary is within the model's. The
    rows are a multiple of 64 then, for the GPU's matrix units
    (https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html#requirements-tc).
    """
    spec = spec_of(config)
    size = spec.vocab_size if spec else 0
    tokens = 1 + max(tokenizer.get_vocab().values(), default=0)
    if tokens <= size or (config.tokenizer is None and tokenizer.vocab_size > size):
        return size
    return -(-tokens // ROWS_MULTIPLE) * ROWS_MULTIPLE


def encoder_settings(config: Config, tokenizer: Any) -> EncoderSettings:
    """Return all that decides which tokens a row becomes."""
    source = tokenizer_source(config, spec_of(config))
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return EncoderSettings(
        tokenizer=backend.to_str(), bos_id=tokenizer.bos_token_id, eos_id=tokenizer.eos_token_id,
        special_tokens=special, chat_template=_template(tokenizer),
        chat_template_name=config.data.chat_template or f"chat template of {source}",
        vocab_size=vocabulary_size(config, tokenizer), train_on_inputs=config.data.train_on_inputs,
        validation_fraction=config.data.validation_fraction,
    )  # fmt: skip


def _template(tokenizer: Any) -> str | None:
    """Return the tokenizer's chat template, of several the one named `default`; None where there is none."""
    if not tokenizer.chat_template:
        return None
    try:
        found: str = tokenizer.get_chat_template()
    except ValueError:  # several, and none of them is the default
        return None
    return found


def padding_id(tokenizer: Any, encoder: EncoderSettings) -> int:
    """Return what blocks are filled up with: nothing is told by it, so that EOS serves where there is no pad token."""
    pad: int | None = tokenizer.pad_token_id
    return encoder.eos_id if pad is None or pad >= encoder.vocab_size else pad


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
