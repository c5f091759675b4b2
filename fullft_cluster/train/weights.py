"""The model of a run: its architecture with weights from a directory, from the hub's cache, or random by the seed."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import torch

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.model import differences, load_model
from fullft_cluster.train.setup import Job
from fullft_cluster.train.tokenizer import load_tokenizer, vocabulary_size

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_model(job: Job, attention: str) -> Any:
    """Return the transformers model; sharded from the start where HfDeepSpeedConfig is alive and asks for ZeRO-3.

    No `device_map`: it excludes ZeRO-3. Random weights come from `from_config`, because constructing the class under
    zero.Init leaves torch's default initialisation in place. Raises UsageError when the weights cannot be loaded, or
    are of another architecture than the planned one (7B and 13B share a vocabulary), which is seen before loading them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = load_model(job.config.model or "")
    dtype = DTYPES[job.plan.precision]
    torch.manual_seed(job.plan.seed)
    if job.config.weights == "random":
        rows = vocabulary_size(job.config, load_tokenizer(job.config))
        config = AutoConfig.for_model(**{**spec.hf_config, "vocab_size": rows})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        draw_matrices(model, job.plan.seed)
        return model
    reference = job.config.weights or ""
    try:
        if wrong := differences(spec, AutoConfig.from_pretrained(reference).to_dict()):
            fix = "Give the weights that belong to --model."
            raise UsageError([Problem("weights", f"{reference}: {difference}", fix) for difference in wrong])
        model = AutoModelForCausalLM.from_pretrained(reference, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0]
        fix = "Give a directory that from_pretrained loads, or fetch it first: hf download."
        raise UsageError(Problem("weights", f"{reference} cannot be loaded ({first})", fix)) from error
    rows = vocabulary_size(job.config, load_tokenizer(job.config))
    if rows > spec.vocab_size:
        grow_vocabulary(model, spec.vocab_size, rows)
        if job.identity.rank == 0:
            told = f"vocabulary: the tokenizer's new tokens grow the embeddings from {spec.vocab_size} to {rows} rows"
            print(f"{told}, which begin as the mean of the old ones; the plan does not count them", flush=True)
    return model


@torch.no_grad()
def grow_vocabulary(model: Any, old: int, rows: int) -> None:
    """Give the embeddings and the output layer `rows` rows; the new ones are the mean of the `old` ones.

    Then the new tokens are as likely as an average one and take no probability from the others, where rows drawn at
    random can take nearly all of it (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). transformers' own
    `mean_resizing` adds noise, which would be another one on each engine. Under ZeRO-3 transformers gathers the old
    rows, and leaves the grown matrices whole until the engine shards them.
    """
    model.resize_token_embeddings(rows, mean_resizing=False)
    grown = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in grown.values():  # tied, they are one
        with _whole(weight):
            weight[old:] = weight[:old].mean(0, dtype=torch.float64).to(weight.dtype)


@torch.no_grad()
def draw_matrices(model: Any, seed: int) -> None:
    """Draw each matrix anew, from a generator of its own that is seeded by the run's seed and the matrix's name.

    Under zero.Init the one generator of torch has gone another way than without it, and GPUs draw other numbers than
    CPUs, so that the same seed would begin with other weights on each; so all are drawn on the CPU. The distribution is
    transformers' own (modeling_llama.py and its siblings, `_init_weights`): normal with the config's
    ``initializer_range``; norms and biases are left alone.
    """
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if len(shape) < 2:
            continue
        with _whole(parameter):
            own = torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            drawn = torch.empty(shape, dtype=parameter.dtype)
            parameter.copy_(drawn.normal_(0.0, model.config.initializer_range, generator=own))


def _whole(parameter: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a parameter is whole, and after which rank 0's values are shared out."""
    if not hasattr(parameter, "ds_shape"):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    gathered: contextlib.AbstractContextManager[None] = GatheredParameters([parameter], modifier_rank=0)
    return gathered
