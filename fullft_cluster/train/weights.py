"""The model of a run: its architecture with weights from a directory, from the hub's cache, or random by the seed."""

from __future__ import annotations

from typing import Any

import torch

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.model import differences, load_model
from fullft_cluster.train.setup import Job

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_model(job: Job, attention: str) -> Any:
    """Return the transformers model; sharded from the start where HfDeepSpeedConfig is alive.

    No `device_map`: it excludes ZeRO-3. Random weights come from `from_config`, because constructing the class under
    zero.Init leaves torch's default initialisation in place. Raises UsageError when the weights cannot be loaded, or
    are of another architecture than the planned one (7B and 13B share a vocabulary), which is seen before loading them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = load_model(job.config.model or "")
    dtype = DTYPES[job.plan.precision]
    torch.manual_seed(job.plan.seed)
    if job.config.weights == "random":
        config = AutoConfig.for_model(**spec.hf_config)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    reference = job.config.weights or ""
    try:
        if wrong := differences(spec, AutoConfig.from_pretrained(reference).to_dict()):
            fix = "Give the weights that belong to --model."
            raise UsageError([Problem("weights", f"{reference}: {difference}", fix) for difference in wrong])
        return AutoModelForCausalLM.from_pretrained(reference, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0]
        fix = "Give a directory that from_pretrained loads, or fetch it first: hf download."
        raise UsageError(Problem("weights", f"{reference} cannot be loaded ({first})", fix)) from error
