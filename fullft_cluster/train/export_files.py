"""The files of an export: safetensors shards with their index, config, generation config, tokenizer; their check."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, RunFailedError, UsageError
from fullft_cluster.model import ModelSpec
from fullft_cluster.rundir import write_json
from fullft_cluster.train.consolidate import Weights
from fullft_cluster.train.export_form import Form

INDEX = "model.safetensors.index.json"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SAFETENSORS_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def names_to_write(weights: Weights, spec: ModelSpec, where: Path) -> list[str]:
    """Return the names of the tensors of an export: those of the model, tied weights once.

    Raises RunFailedError unless the checkpoint holds exactly the tensors of the model, of the right sizes; only the
    rows of the embeddings may be more, where the tokenizer has more tokens than the model had.
    """
    found = {name: math.prod(shape) for name, shape in weights.shapes.items()}
    if spec.tie_word_embeddings:
        found.pop(HEAD, None)
    rows = weights.shapes.get(EMBEDDINGS, (spec.vocab_size,))[0]
    wanted = {tensor.name: tensor.elements for tensor in spec.outer_tensors()}
    wanted |= {name: rows * spec.hidden_size for name in (EMBEDDINGS, HEAD) if name in wanted}
    for layer in range(spec.num_hidden_layers):
        wanted |= {f"model.layers.{layer}.{tensor.name}": tensor.elements for tensor in spec.layer_tensors()}
    odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if odd or rows < spec.vocab_size:
        shown = ", ".join(odd[:5]) or EMBEDDINGS
        what = f"its tensors are not those of {spec.name}: {shown}{' and more' if len(odd) > 5 else ''} differ"
        raise RunFailedError(Problem(str(where), what, "Was config.yaml changed since?"))
    return list(found)


def write_weights(
    weights: Weights, names: Iterable[str], directory: Path, dtype: torch.dtype, form: Form
) -> None:  # fmt: skip
    """Write the shards one after the other, with an index where there are several; no more than one is in memory."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    empty = {name: torch.empty(weights.shapes[name], dtype=dtype, device="meta") for name in names}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=form.max_shard_bytes)
    for number, (file, members) in enumerate(split.filename_to_tensors.items(), 1):
        shard = {name: weights.tensor(name).to(dtype) for name in members}
        save_file(shard, directory / file, metadata={"format": "pt"})
        del shard
        form.say(f"{file} ({number} of {len(split.filename_to_tensors)})")
    if split.is_sharded:
        write_json(directory / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def check_weights(weights: Weights, names: Iterable[str], directory: Path, dtype: torch.dtype) -> None:
    """Reopen an export; compare every tensor's name, shape and type, and three rows of each, with the checkpoint.

    Raises RunFailedError.
    """
    from safetensors import safe_open

    seen: set[str] = set()
    wrong: list[str] = []
    expected = set(names)
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                seen.add(name)
                if name not in expected:
                    wrong.append(f"{name} was not trained")
                elif fault := _difference(weights, name, file.get_slice(name), dtype):
                    wrong.append(f"{name} {fault}")
    wrong += [f"{name} is missing" for name in sorted(expected - seen)]
    index = directory / INDEX
    if index.exists() and set(json.loads(index.read_text())["weight_map"]) != seen:
        wrong.append("the index does not list the tensors of the shards")
    if wrong:
        raise RunFailedError(Problem(str(directory), "the export does not read back: " + "; ".join(wrong[:5])))


def _difference(weights: Weights, name: str, written: Any, dtype: torch.dtype) -> str:
    """Return in what a tensor of the export (an open slice) is not the checkpoint's, or nothing."""
    shape = weights.shapes[name]
    if tuple(written.get_shape()) != shape or written.get_dtype() != _SAFETENSORS_DTYPES[dtype]:
        return f"is {written.get_dtype()} of shape {tuple(written.get_shape())}"
    rows, width = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    for row in sorted({0, rows // 2, rows - 1}):
        got = written[row : row + 1].flatten() if len(shape) > 1 else written[:]
        if not torch.equal(got, weights.part(name, row * width, (row + 1) * width).to(dtype)):
            return f"has other values in row {row}"
    return ""


def write_configs(config: Config, spec: ModelSpec, directory: Path, tokenizer: Any, facts: dict[str, Any]) -> None:
    """Write config.json, generation_config.json and the tokenizer with its chat template.

    `facts`: `dtype`, `vocab_size`, and `end_of_turn_id`, which ends an answer in a chat, or None. Raises UsageError.
    """
    made = hf_config(config, spec)
    generation = _generation_config(config, made)
    # A model made from a config alone does not know its tokenizer's special tokens, and would never stop generating.
    for own in (made, generation):
        own.eos_token_id = end_tokens(own.eos_token_id, tokenizer.eos_token_id, facts["end_of_turn_id"])
        own.bos_token_id = tokenizer.bos_token_id
        if tokenizer.pad_token_id is not None:
            own.pad_token_id = tokenizer.pad_token_id
    made.vocab_size, made.dtype, made.use_cache = facts["vocab_size"], facts["dtype"], True
    made.save_pretrained(directory)
    try:
        generation.save_pretrained(directory)
    except ValueError:  # temperature or top_p without do_sample, which transformers once wrote and now refuses
        generation.do_sample = True
        generation.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.iterdir():  # safetensors makes its files readable by their owner alone
        path.chmod(0o666 & ~mask)


def hf_config(config: Config, spec: ModelSpec) -> Any:
    """Return transformers' config of the run's model, as it was before training. Raises UsageError."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.weights == "random":
        made = AutoConfig.for_model(**spec.hf_config)
    else:
        try:
            made = AutoConfig.from_pretrained(config.weights)
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n", 1)[0]
            fix = "The config that training began with is needed: put it back, or fetch it by hf download."
            raise UsageError(Problem("weights", f"{config.weights} cannot be read ({first})", fix)) from None
    made.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[made.model_type]]
    return made


def _generation_config(config: Config, made: Any) -> Any:
    """Return the generation config that came with the weights, or one made from the model's config."""
    from transformers import GenerationConfig

    if config.weights and config.weights != "random":
        try:
            return GenerationConfig.from_pretrained(config.weights)
        except (OSError, ValueError):  # most base models have none
            pass
    return GenerationConfig.from_model_config(made)


def end_tokens(known: int | list[int] | None, *trained: int | None) -> int | list[int]:
    """Return the ids that end a text: those that training ended rows and answers with, and what the weights had."""
    others = [known] if isinstance(known, int) else list(known or [])
    merged = list(dict.fromkeys(token for token in (*trained, *others) if token is not None))
    return merged[0] if len(merged) == 1 else merged
