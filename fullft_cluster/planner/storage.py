"""Host memory of a node in each phase of a run, and bytes on disk."""

from __future__ import annotations

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import PhaseName, Precision
from fullft_cluster.planner.memory import Parts, peak
from fullft_cluster.planner.setup import BYTES, Setup
from fullft_cluster.planner.sharding import FP32, OPTIMIZER_BYTES, largest_tensor, shard, tensors
from fullft_cluster.units import GIB

HOST_PROCESS_BYTES = 4 * GIB
"""A worker with CUDA, torch and deepspeed loaded, and its data. Default."""

EXPORT_FILE_BYTES = 5 * 10**9
"""Of a file of the export, in memory while it is written; what the hub's own libraries take by default."""
EXPORT_MAPPED_BYTES = 1 << 30
"""Of the checkpoint's files, read through memory maps, before those are made anew."""

SPREAD = {
    "workers": (0.7, 1.5), "offloaded": (0.95, 1.05), "weights": (0.9, 1.1), "export": (0.5, 1.1),
    "checkpoint_shards": (1.0, 1.1),
}  # fmt: skip
"""(low, high) of each part as factors of the expected bytes."""


def checkpoint_bytes(setup: Setup) -> int:
    """Return the bytes of a checkpoint: 12 a parameter, master weight and two moments; 14 under ZeRO-1 and 2.

    Measured with DeepSpeed 0.19: ZeRO-3 writes no 16-bit copy of the weights, ZeRO-1 and 2 write one on rank 0.
    """
    copy = 0 if setup.engine == "fsdp" or setup.zero_stage == 3 else setup.element_bytes
    return (OPTIMIZER_BYTES + copy) * setup.model.parameters


def export_bytes(parameters: int, precision: Precision) -> int:
    """Return the bytes of the exported weights: 2 a parameter in bf16, 4 in fp32.

    A checkpoint beside which such a copy is written at each save, as transformers' Trainer does with
    stage3_gather_16bit_weights_on_model_save, takes 12 + 2 bytes a parameter.
    """
    return BYTES[precision] * parameters


def export_memory(setup: Setup) -> int:
    """Return what an export has in memory: a file of it, the largest tensor in fp32, and what is mapped."""
    file = min(EXPORT_FILE_BYTES, export_bytes(setup.model.parameters, setup.precision))
    mapped = min(EXPORT_MAPPED_BYTES, FP32 * setup.model.parameters)
    return file + FP32 * largest_tensor(setup.model) + mapped


def disk_bytes(setup: Setup, kept: int, *, best: bool) -> int:
    """Return what a run takes on disk: the kept checkpoints, one in flight, and the export.

    `best`: the weights of the lowest evaluation loss as well, twice while better ones are written.
    """
    weights = export_bytes(setup.model.parameters, setup.precision)
    return (kept + 1) * checkpoint_bytes(setup) + weights * (3 if best else 1)


def host_phases(setup: Setup) -> dict[PhaseName, Parts]:
    """Return the parts of a node's host memory in each phase, in bytes.

    load: rank 0 reads the weights whole (transformers' from_pretrained under zero.Init); under ZeRO-1 and 2 every rank
    does. train: what is offloaded. save: the same; at the end rank 0 holds a file of the export at a time. resume:
    each process holds its shard of the checkpoint beside what the optimizer keeps on the host, under ZeRO-1 and 2 the
    weights too; torch.distributed.checkpoint, of FSDP, reads tensor by tensor into what is there. On CPUs the
    processes' whole memory is the node's.
    """
    processes = setup.gpus_per_node
    share = shard(setup) * processes
    weights = export_bytes(setup.model.parameters, setup.precision)
    if setup.gpu == CPU:
        always = {"workers": processes * sum(peak(setup)[1].values())}
    else:
        always = {"workers": processes * HOST_PROCESS_BYTES} | _offloaded(setup, share)
    passing: dict[PhaseName, Parts] = {
        "load": {"weights": weights * (1 if setup.zero_stage == 3 else processes)},
        "forward": {},
        "backward": {},
        "optimizer_step": {},
        "save": {"export": export_memory(setup)},
        "resume": {
            "checkpoint_shards": OPTIMIZER_BYTES * share if setup.engine == "deepspeed" else 0,
            "weights": 0 if setup.zero_stage == 3 else weights * processes,
        },
    }
    phases = {name: {**always, **parts} for name, parts in passing.items()}
    if (
        "offloaded" in always and setup.engine == "deepspeed"
    ):  # what torch.load brings in becomes the moments, which are not there before
        phases["resume"]["offloaded"] = always["offloaded"] - 2 * FP32 * share
    return phases


def _offloaded(setup: Setup, share: int) -> Parts:
    """Return what offloading puts on a node: (16 + e) bytes a parameter, and e more for the parameters themselves.

    ZeRO-3: master weight and two moments, 12; page-locked, each in a block of its own: the 16-bit gradients of a rank,
    the fp32 gradients of each of its sub-groups, and the parameters. ZeRO-1 and 2: moments 8; page-locked master
    weight, fp32 gradient, 16-bit copy, a buffer for the largest gradient, and where gradients are accumulated those
    too. stage3.py and stage_1_and_2.py, `initialize_optimizer_states`. FSDP: gradients and moments, 12, and each
    parameter's shard page-locked, 4 (`CPUOffloadPolicy`).
    """
    if setup.offload == "none":
        return {}
    e, elements = setup.element_bytes, share // setup.gpus_per_node
    if setup.engine == "fsdp":
        masters = sum(times * locked(FP32 * -(-t.elements // setup.gpus)) for t, times in tensors(setup.model))
        return {"offloaded": setup.gpus_per_node * (3 * FP32 * elements + masters)}
    if setup.zero_stage == 3:
        full, rest = divmod(elements, int(setup.zero["sub_group_size"]))
        blocks = [FP32 * int(setup.zero["sub_group_size"])] * full + [FP32 * rest, e * elements]
        blocks += [e * elements] if setup.offload == "parameters" else []
        pageable = OPTIMIZER_BYTES * elements
        if setup.hpz > 1 and setup.offload == "parameters":  # _partition_param_sec: on the remote device
            pageable += e * elements * setup.gpus // setup.hpz
    else:
        blocks = [FP32 * elements, FP32 * elements, e * elements, e * largest_tensor(setup.model)]
        pageable = 2 * FP32 * elements
        if setup.accumulation > 1:  # a block for each gradient
            pageable += sum(times * locked(e * t.elements) for t, times in tensors(setup.model)) // setup.gpus
    return {"offloaded": setup.gpus_per_node * (pageable + sum(locked(size) for size in blocks))}


def locked(size: int) -> int:
    """Return what a page-locked block takes: torch's host allocator rounds it up to a power of two.

    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/core/CachingHostAllocator.h
    """
    return 1 << (size - 1).bit_length() if size else 0
