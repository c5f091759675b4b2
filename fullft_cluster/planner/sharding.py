"""What ZeRO and FSDP leave on a GPU: shards of the states, buckets, gathered parameters, the optimizer step. In bytes.

ZeRO (https://arxiv.org/abs/1910.02054) shards optimizer states (stage 1), gradients too (2), parameters too (3): in
bf16 with AdamW 2 + 2 + 12 bytes a parameter. ZeRO++'s hpZ (https://arxiv.org/abs/2306.10209) keeps a second copy of the
parameters sharded within the node. FSDP's full shard keeps master weights, gradients and moments in fp32: 16 bytes too.
"""

from __future__ import annotations

from functools import cache

from fullft_cluster.hardware import CPU
from fullft_cluster.model_shape import ModelSpec, Tensor
from fullft_cluster.plan import PhaseName
from fullft_cluster.planner.setup import Setup

FP32, FP64 = 4, 8
OPTIMIZER_BYTES = 12
"""fp32 master weight and AdamW's two moments; DeepSpeed keeps the master copy in fp32 training too
(stage3.py, `_create_fp32_partitions`)."""
STAGE2_ALIGNMENT = 2
"""Flat groups of ZeRO-1 and 2 are padded to a multiple of this x GPUs (stage_1_and_2.py,
`nccl_start_alignment_factor`)."""


@cache
def tensors(model: ModelSpec) -> tuple[tuple[Tensor, int], ...]:
    """Return each weight with how often it occurs. Kept, as are the sums over them: a search asks a thousand times."""
    outer = tuple((tensor, 1) for tensor in model.outer_tensors())
    return outer + tuple((tensor, model.num_hidden_layers) for tensor in model.layer_tensors())


@cache
def cut(model: ModelSpec, gpus: int) -> tuple[int, int]:
    """Return the elements of one of ``gpus`` equal parts of each tensor, rounded up: of matrices, and of vectors."""
    parts = [0, 0]
    for tensor, times in tensors(model):
        parts[is_vector(tensor)] += times * -(-tensor.elements // gpus)
    return parts[0], parts[1]


@cache
def largest_tensor(model: ModelSpec) -> int:
    """Return the elements of the largest weight."""
    return max(tensor.elements for tensor, _ in tensors(model))


def is_vector(tensor: Tensor) -> bool:
    """Return whether a weight has one dimension: biases and the scales of norms."""
    return tensor.name.endswith(".bias") or "norm" in tensor.name


def shard(setup: Setup) -> int:
    """Return the elements that one GPU keeps of everything that is sharded over all GPUs, padding included.

    ZeRO-3 cuts each tensor into equal parts, rounded up (partition_parameters.py, `partition_numel`); ZeRO-1 and 2 cut
    the flat groups of what decays and what does not (norms and biases).
    """
    if setup.zero_stage == 3:
        return sum(cut(setup.model, setup.gpus))
    return flat_group(setup) // setup.gpus


def flat_group(setup: Setup) -> int:
    """Return the elements of ZeRO-1's and 2's flat groups, padded: matrices, and what has one dimension."""
    unit = STAGE2_ALIGNMENT * setup.gpus
    return sum(-(-elements // unit) * unit for elements in cut(setup.model, 1))


def matrices_shard(setup: Setup) -> int:
    """Return the part of the shard that belongs to the parameter group of the matrices, which is stepped over by
    itself."""
    if setup.zero_stage == 3:
        return cut(setup.model, setup.gpus)[0]
    return -(-cut(setup.model, 1)[0] // (STAGE2_ALIGNMENT * setup.gpus)) * STAGE2_ALIGNMENT


def states(setup: Setup) -> dict[str, int]:
    """Return what stays on the GPU all the time. On CPUs offloaded states stay in the same memory."""
    e, elements = setup.element_bytes, shard(setup)
    on_gpu = setup.gpu == CPU or setup.offload == "none"
    if setup.engine == "fsdp":
        master, moments = (2, 4) if setup.pure_bf16 else (FP32, 2 * FP32)
        if setup.offload == "parameters" and setup.gpu != CPU:
            return {}
        return {"parameters": master * elements, "gradients": master * elements, "optimizer_states": moments * elements}
    parts: dict[str, int] = {}
    if setup.zero_stage < 3:
        parts["parameters"] = e * flat_group(setup)
    elif setup.gpu == CPU or setup.offload != "parameters":
        parts["parameters"] = e * elements
    if on_gpu:
        parts |= {"gradients": e * elements} if setup.zero_stage == 3 else {}
        parts["optimizer_states"] = OPTIMIZER_BYTES * elements
    if setup.hpz > 1 and setup.offload != "parameters":  # else it is on the host as well
        parts["secondary_parameters"] = e * elements * setup.gpus // setup.hpz
    return parts


@cache
def reaching(model: ModelSpec, gpus: int) -> int:
    """Return the elements of all weights that reach into one GPU's part of the flat groups, on the GPU with most.

    ZeRO-1 and 2 keep gradients whole where a part's border runs through a tensor (stage_1_and_2.py,
    `copy_grads_in_partition`): about a tenth more than the part for a 7B on 8 GPUs.
    """
    outer = list(model.outer_tensors())
    order = [outer[0], *list(model.layer_tensors()) * model.num_hidden_layers, *outer[1:]]
    held = [0] * gpus
    for vectors in (False, True):
        sizes = [tensor.elements for tensor in order if is_vector(tensor) == vectors]
        part = max(-(-sum(sizes) // (STAGE2_ALIGNMENT * gpus)) * STAGE2_ALIGNMENT, 1)
        start = 0
        for size in sizes:
            for rank in range(start // part, min((start + size - 1) // part, gpus - 1) + 1):
                held[rank] += size
            start += size
        held[-1] += part * gpus - start  # the padding at the end
    return max(held)


def gradients_in_backward(setup: Setup) -> int:
    """Return what the backward pass piles up of gradients under ZeRO-1 and 2, where no shard of them is kept ready.

    Stage 2 keeps those that reach into this GPU's part, and where gradients are accumulated a second time those of the
    present micro-step; stage 1 keeps all of them until the last micro-step, and then the part's too
    (stage_1_and_2.py). Offloaded, they leave tensor by tensor through a buffer for the largest one.
    """
    if setup.engine == "fsdp" or setup.zero_stage == 3:
        return 0
    e, model = setup.element_bytes, setup.model
    part = e * reaching(model, setup.gpus)
    if setup.zero_stage == 1:
        return e * model.parameters + part
    if setup.offload != "none" and setup.gpu != CPU:
        return e * largest_tensor(model)
    return part * (2 if setup.accumulation > 1 else 1)


def persistent(setup: Setup) -> int:
    """Return the tensors up to stage3_param_persistence_threshold: whole on every GPU, always.

    A GPU that is alone gathers nothing: its shard is the whole.
    """
    if setup.engine == "fsdp" or setup.zero_stage < 3 or setup.gpus == 1:
        return 0
    threshold = setup.zero["stage3_param_persistence_threshold"]
    return setup.element_bytes * _small(setup.model, threshold, setup.gpus)


@cache
def _small(model: ModelSpec, threshold: int, gpus: int) -> int:
    small = ((tensor.elements, times) for tensor, times in tensors(model) if tensor.elements <= threshold)
    return sum(times * -(-elements // gpus) * gpus for elements, times in small)


def gathered_elements(setup: Setup, phase: PhaseName) -> int:
    """Return the most parameters that are whole on a GPU at once, besides the persistent ones.

    ZeRO-3 fetches ahead at each submodule until stage3_max_live_parameters are there, whatever the prefetch bucket is,
    and then what computes comes on top: the largest tensor, or at least a layer where it is recomputed
    (partitioned_param_coordinator.py, `fetch_sub_module`; seen in runs of scaled models with DeepSpeed 0.19). At the
    loss the limit itself holds. FSDP: the layer that computes, the next one that is fetched, and the outer tensors,
    which it wraps as one (https://arxiv.org/abs/2304.11277, section 3.3.2).
    """
    model = setup.model
    at_hand = setup.gpus == 1 and setup.offload != "parameters" and not setup.own_fsdp  # FSDP2 copies even then
    if setup.zero_stage < 3 or at_hand:
        return 0
    if setup.weights_in_graph:
        return model.parameters
    if setup.engine == "fsdp":
        return min(model.parameters, 2 * model.layer_parameters + sum(t.elements for t in model.outer_tensors()))
    live: int = setup.zero["stage3_max_live_parameters"]
    if phase == "forward":
        return min(model.parameters, live)
    recomputed = model.layer_parameters if setup.activation_checkpointing else 0
    return min(model.parameters, max(live + largest_tensor(model), recomputed))


def bucket(setup: Setup) -> int:
    """Return the flat reduce buckets: one that stage 3 holds from the start (stage3.py, `IPGBucketZ3.buffer`), one in
    each backward pass of stages 1 and 2, and a second one there with overlap_comm (stage_1_and_2.py, `ipg_buffer`).
    """
    if setup.engine == "fsdp":
        return 0
    buffers = 2 if setup.zero_stage < 3 and setup.zero["overlap_comm"] else 1
    return buffers * setup.element_bytes * int(setup.zero["reduce_bucket_size"])


def reducing(setup: Setup) -> int:
    """Return what reducing gradients takes beyond the buckets.

    ZeRO-3: whole gradients of two matrices, because one that is larger than the bucket waits for the next (stage3.py,
    `__add_grad_to_ipg_bucket`). ZeRO-1 and 2: the largest gradient, and the flattened copy of a bucket. FSDP: the
    gradients of a layer, whole, and their copy in the reduction's type.
    """
    model, e = setup.model, setup.element_bytes
    if setup.engine == "fsdp":
        in_sum = FP32 if setup.own_fsdp else e
        return (e + in_sum) * max(model.layer_parameters, sum(t.elements for t in model.outer_tensors()))
    if setup.zero_stage < 3:
        return e * (int(setup.zero["reduce_bucket_size"]) + largest_tensor(model))
    return e * max(2 * model.hidden_size * model.intermediate_size, largest_tensor(model))


def optimizer_step(setup: Setup) -> int:
    """Return what the optimizer step takes; nothing where it works on the host.

    ZeRO-3 flattens the gradients of one sub-group and casts them to fp32, ``(e + 4)`` bytes an element of it
    (stage3.py,
    `_prepare_fp32_grad_for_sub_group`), after the norm in fp64 of one tensor at a time; ZeRO-1 and 2 do so with the
    whole shard of a parameter group (stage_1_and_2.py, `step`). FSDP: AdamW without ``fused`` makes one temporary in
    fp32 of all it steps over, 4 bytes a parameter: 20 instead of 16.
    """
    if setup.engine == "fsdp":
        return 0 if setup.own_fsdp else (2 if setup.pure_bf16 else FP32) * shard(setup)
    if setup.offload != "none":
        return 0
    elements = matrices_shard(setup)
    largest = -(-largest_tensor(setup.model) // setup.gpus)
    if setup.zero_stage == 3:  # a sub-group ends with the tensor that fills it up
        elements = min(int(setup.zero["sub_group_size"]) + largest, elements)
    return max(elements * (setup.element_bytes + FP32), FP64 * largest)
