"""The weights that FSDP begins with: read or drawn on rank 0 alone, and dealt out tensor by tensor.

No GPU and no other process ever holds the whole model, as under ZeRO-3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import distribute_tensor

from fullft_cluster.train import comm
from fullft_cluster.train.setup import Job


def empty_model(job: Job, attention: str) -> tuple[Any, Any]:
    """Return (the model without memory for its parameters, rank 0's whole model on the CPU, None elsewhere).

    A collective. Raises UsageError on all ranks when rank 0 cannot load the weights.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from fullft_cluster.train.weights import make_model

    source: list[Any] = []

    def load() -> Any:
        source.append(make_model(job, attention))
        return source[0].config

    # Of the model as it was made: tokens that a tokenizer adds have grown it.
    config = comm.on_rank_zero(load)
    torch.manual_seed(job.plan.seed)
    with init_empty_weights(include_buffers=False):  # the rotary frequencies are no weights, and are computed
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    return model, source[0] if source else None


@torch.no_grad()
def fill(model: Any, source: Any, device: torch.device, *, on_host: bool) -> None:
    """Give a sharded empty model its memory (on the CPU where `on_host`) and rank 0's weights, one at a time."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device="cpu" if on_host else device)
    model.tie_weights()
    for name, buffer in buffers.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, buffer.to(device))
    weights = dict(source.named_parameters()) if source is not None else {}
    # The type in which they were loaded, half of the masters' in bf16; it goes over the network.
    kind = comm.on_rank_zero(lambda: next(iter(weights.values())).dtype)
    for name, parameter in model.named_parameters():
        whole = weights[name].to(device) if weights else torch.empty(parameter.shape, dtype=kind, device=device)
        dist.broadcast(whole, src=0)
        part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
