"""Peak memory of one GPU under ZeRO-3, by phase. All amounts in bytes.

ZeRO-3 shards parameters, gradients and optimizer states over all GPUs (https://arxiv.org/abs/1910.02054): in bf16 with
AdamW 2 + 2 + 12 bytes a parameter. On top come, each in its phase: gathered parameters, buckets, activations
(https://arxiv.org/abs/2205.05198, here without a term in sequence squared: FlashAttention or sdpa), the logits with the
loss, and fp32 gradients in the optimizer step. The peak is the largest phase; its parts are what a plan shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fullft_cluster.hardware import CPU
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Offload, Precision
from fullft_cluster.units import GIB

BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
"""Bytes of an element of parameters, gradients and activations."""

FP32 = 4
OPTIMIZER_BYTES = 12
"""fp32 master weight and AdamW's two moments; DeepSpeed keeps the master copy in fp32 training too
(stage3.py, `_create_fp32_partitions`)."""

LOSS_FP32_COPIES = 3
"""fp32 tensors of tokens x vocabulary alive in the backward pass of the loss: log-probabilities, and the gradients
before and after log_softmax. Measured with torch's MemTracker: 2 of them are temporary."""

GPU_FRAMEWORK_BYTES = int(1.5 * GIB)
"""CUDA context, cuBLAS workspace and NCCL's buffers, outside of torch's allocator. A default, on the safe side:
the context alone is about 0.5 GiB on an A100."""

CPU_FRAMEWORK_BYTES = int(0.7 * GIB)
"""A process with torch, transformers and deepspeed imported, without CUDA. Default."""

FRAGMENTATION = 0.05
"""Share of what the allocator holds beyond the flat shards that is lost between blocks. Default."""


@dataclass(frozen=True)
class Setup:
    """What decides the memory of one GPU."""

    model: ModelSpec
    gpu: str
    gpus: int
    micro_batch_size: int
    seq_len: int
    activation_checkpointing: bool
    precision: Precision
    offload: Offload
    zero: Mapping[str, Any]
    """The ``zero_optimization`` of the DeepSpeed JSON."""

    @property
    def tokens(self) -> int:
        """Return the tokens that a GPU computes at once."""
        return self.micro_batch_size * self.seq_len

    @property
    def element_bytes(self) -> int:
        """Return the bytes of an element of parameters and activations."""
        return BYTES[self.precision]


def shard(setup: Setup) -> int:
    """Return the parameters that one GPU keeps: each tensor is cut into equal parts, so about P / N, rounded up."""
    return -(-setup.model.parameters // setup.gpus)


def persistent_elements(setup: Setup) -> int:
    """Return the elements of the tensors below stage3_param_persistence_threshold: whole on every GPU, always."""
    threshold = setup.zero["stage3_param_persistence_threshold"]
    model = setup.model
    layer = sum(t.elements for t in model.layer_tensors() if t.elements < threshold)
    outer = sum(t.elements for t in model.outer_tensors() if t.elements < threshold)
    return outer + model.num_hidden_layers * layer


def gathered_elements(setup: Setup) -> int:
    """Return the most parameters that are whole on a GPU at once, besides the persistent ones.

    What computes (a layer, or the largest tensor), what is fetched ahead, and what was kept because it is used again
    within stage3_max_reuse_distance. At the turn from forward to backward that distance counts each parameter on the
    way out and on the way back, so half of it is kept (partitioned_param_coordinator.py, `__params_to_release`).
    """
    zero, model = setup.zero, setup.model
    computing = max(model.layer_parameters, model.largest_tensor)
    fetched = min(zero["stage3_prefetch_bucket_size"], zero["stage3_max_live_parameters"])
    kept = min(zero["stage3_max_reuse_distance"], zero["stage3_max_live_parameters"]) // 2
    return int(min(model.parameters, computing + fetched + kept))


def layer_activation_bytes(setup: Setup) -> int:
    """Return what one layer keeps for its backward pass, per token.

    Two RMSNorms: an fp32 copy, the normalised and the scaled activations; attention: q, k and v after the rotation, the
    output and its transposed copy (no probabilities: FlashAttention); gated MLP: gate, its activation, up, product.
    With e bytes an element: ``2h(4 + 2e) + e(3q + 2k) + 4ei``. LLaMA-7B in bf16: 47.5 h; MemTracker measures 46.5 h.
    """
    model, e = setup.model, setup.element_bytes
    norms = 2 * model.hidden_size * (FP32 + 2 * e)
    attention = e * (3 * model.query_size + 2 * model.key_value_size)
    return norms + attention + 4 * e * model.intermediate_size


def checkpoint_bytes(setup: Setup) -> int:
    """Return the activations that outlive the forward pass: layer inputs (``e h`` a token) or all that layers keep."""
    model, e = setup.model, setup.element_bytes
    per_token = e * model.hidden_size if setup.activation_checkpointing else layer_activation_bytes(setup)
    return model.num_hidden_layers * per_token * setup.tokens


def layer_working_bytes(setup: Setup) -> int:
    """Return what the backward pass of one layer takes on top: recomputed activations, and gradients of its MLP."""
    model, e = setup.model, setup.element_bytes
    recomputed = layer_activation_bytes(setup) if setup.activation_checkpointing else 0
    return (recomputed + e * (2 * model.intermediate_size + model.hidden_size)) * setup.tokens


def loss_bytes(setup: Setup) -> int:
    """Return logits, loss and their gradients, with what the final norm keeps.

    ``tokens (V (e + 4 x 3) + h (4 + 3e))``: logits in e bytes, three fp32 copies (see LOSS_FP32_COPIES).
    """
    model, e = setup.model, setup.element_bytes
    logits = model.vocab_size * (e + LOSS_FP32_COPIES * FP32)
    return setup.tokens * (logits + model.hidden_size * (FP32 + 3 * e))


def reduce_bytes(setup: Setup) -> int:
    """Return the reduce bucket, twice (the buffer, and the flattened copy that is on its way), and one gradient.

    The gradient of the largest tensor is whole before it is cut up (stage3.py, `__add_grad_to_ipg_bucket`).
    """
    bucket: int = setup.zero["reduce_bucket_size"]
    return setup.element_bytes * (2 * bucket + setup.model.largest_tensor)


def step_bytes(setup: Setup) -> int:
    """Return what the optimizer step takes: flattened and fp32 gradients of one sub-group; nothing when offloaded."""
    if setup.offload == "optimizer":
        return 0
    # A sub-group ends with the tensor that fills it up.
    largest: int = setup.zero["sub_group_size"] + -(-setup.model.largest_tensor // setup.gpus)
    return min(largest, shard(setup)) * (setup.element_bytes + FP32)


def states(setup: Setup) -> dict[str, int]:
    """Return the shards that stay on the GPU all the time. On CPUs offloaded ones stay in the same memory."""
    elements, e = shard(setup), setup.element_bytes
    parts = {"parameters": elements * e}
    if setup.offload == "none" or setup.gpu == CPU:
        parts |= {"gradients": elements * e, "optimizer_states": elements * OPTIMIZER_BYTES}
    return parts


def phases(setup: Setup) -> dict[str, dict[str, int]]:
    """Return the parts of each phase, in bytes: the loss, the backward pass of a layer, the optimizer step."""
    always = {**states(setup), "persistent_parameters": persistent_elements(setup) * setup.element_bytes}
    computing = {
        "gathered_parameters": gathered_elements(setup) * setup.element_bytes,
        "reduce_buckets": reduce_bytes(setup),
        "activations": checkpoint_bytes(setup),
    }
    buffer = {"reduce_buckets": setup.element_bytes * setup.zero["reduce_bucket_size"]}
    return {
        "loss": _whole(setup, always, {**computing, "logits_and_loss": loss_bytes(setup)}),
        "backward": _whole(setup, always, {**computing, "layer_backward": layer_working_bytes(setup)}),
        "optimizer step": _whole(setup, always, {**buffer, "optimizer_step": step_bytes(setup)}),
    }


def _whole(setup: Setup, always: dict[str, int], moving: dict[str, int]) -> dict[str, int]:
    """Return the parts of a phase with the margin for fragmentation and what lies outside the allocator."""
    framework = CPU_FRAMEWORK_BYTES if setup.gpu == CPU else GPU_FRAMEWORK_BYTES
    margin = 0 if setup.gpu == CPU else int(FRAGMENTATION * sum(moving.values()))
    return {**always, **moving, "fragmentation": margin, "framework": framework}


def peak(setup: Setup) -> tuple[str, dict[str, int]]:
    """Return the phase that needs most, with its parts in bytes."""
    return max(phases(setup).items(), key=lambda item: sum(item[1].values()))
