"""Peak memory of one GPU in each phase of a run: load, forward, backward, optimizer step, save, resume. In bytes.

The phases do not meet, so the largest is the peak, and a plan fits only if all of them do. Each part says how far the
truth may lie from it (`SPREAD`); from that come the low and the high end of a phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import PhaseName
from fullft_cluster.planner import activations, sharding
from fullft_cluster.planner.setup import Setup
from fullft_cluster.units import GIB

Parts = dict[str, int]

CUDA_BYTES = int(0.55 * GIB)
"""CUDA context and cuBLAS workspace, outside of torch's allocator. Measured on an A100 with torch 2:
https://github.com/stas00/ml-engineering/tree/master/training/performance#anatomy-of-models-memory-usage"""

NCCL_BYTES = int(1.45 * GIB)
"""NCCL's buffers from the first collective on, where there is more than one GPU. Measured there too."""

CPU_FRAMEWORK_BYTES = int(0.7 * GIB)
"""A process with torch, transformers and deepspeed imported, without CUDA. Default."""

FRAGMENTATION = 0.05
"""Share of what the allocator holds beyond the flat shards that is lost between blocks. Default."""

OUTSIDE = ("fragmentation", "framework")
"""Parts that torch.cuda.max_memory_allocated does not see."""

SPREAD: dict[str, tuple[float, float]] = {
    # part: (low, high) as factors of the expected bytes. What is not here is a flat buffer whose size is known exactly.
    "gathered_parameters": (0.5, 1.0),  # how far fetching runs ahead depends on the network
    "reduce_bucket": (0.5, 1.0),  # ZeRO-1 and 2: the second one is there only while the first is on its way
    "reducing": (0.5, 1.5),  # how far the reduction lags behind depends on the network: up to three gradients wait
    "activations": (0.95, 1.05),  # versions of transformers keep a tensor more or less
    "layer_forward": (0.5, 1.5),
    "layer_backward": (0.8, 1.2),
    "logits_and_loss": (0.8, 1.2),
    "optimizer_step": (0.6, 1.0),
    "fragmentation": (0.2, 3.0),
    "framework": (0.6, 1.25),
}


def phases(setup: Setup) -> dict[PhaseName, Parts]:
    """Return the parts of each phase; what is sharded or permanent stands in all of them.

    load: the shards, the bucket, and the largest tensor whole while it is read and cut up. forward: checkpoints, a
    layer, and the gathered parameters. backward: its worst moment, which is the loss, the last layer (all
    activations are there, and no gradient of this micro-step) or the first layer (the other way round). save:
    torch.save copies from the GPU through the host, nothing is added (the export at the end gathers a module at a
    time). resume: as much as before the first step, and the shard of the checkpoint passes through the host.
    """
    always = {**sharding.states(setup), "persistent_parameters": sharding.persistent(setup)}
    if setup.zero_stage == 3:
        always["reduce_bucket"] = sharding.bucket(setup)
    e = setup.element_bytes
    at_turn = {"gathered_parameters": e * sharding.gathered_elements(setup, "forward")}
    whole = {"gathered_parameters": e * sharding.gathered_elements(setup, "backward")}
    held = {**whole, "activations": activations.kept(setup)}
    late = {} if setup.zero_stage == 3 else {"reduce_bucket": sharding.bucket(setup)}
    loss = {**held, **at_turn, **late, "logits_and_loss": activations.logits_and_loss(setup)}
    working = {**late, "reducing": sharding.reducing(setup), "layer_backward": activations.layer_backward(setup)}
    gradients = {"gradients_in_backward": sharding.gradients_in_backward(setup)}
    if setup.accumulation > 1:  # those of the micro-steps before are there when the next one begins
        loss |= gradients
        last_layer, first_layer = {**held, **gradients, **working}, {}
    else:
        last_layer, first_layer = {**held, **working}, {**whole, **gradients, **working}
    step = {**gradients, "optimizer_step": sharding.optimizer_step(setup)}
    moving: dict[PhaseName, Parts] = {
        "load": {"gathered_parameters": e * sharding.largest_tensor(setup.model) if setup.zero_stage == 3 else 0},
        "forward": {**held, "layer_forward": activations.layer_forward(setup)},
        "backward": max(loss, last_layer, first_layer, key=lambda parts: sum(parts.values())),
        "optimizer_step": step,
        "save": {},
        "resume": {},
    }
    return {name: _whole(setup, always, parts) for name, parts in moving.items()}


def _whole(setup: Setup, always: Parts, moving: Parts) -> Parts:
    """Return the parts of a phase with the margin for fragmentation and what lies outside the allocator."""
    framework = CPU_FRAMEWORK_BYTES if setup.gpu == CPU else CUDA_BYTES + (NCCL_BYTES if setup.gpus > 1 else 0)
    margin = 0 if setup.gpu == CPU else int(FRAGMENTATION * sum(moving.values()))
    return {name: size for name, size in {**always, **moving, "fragmentation": margin}.items() if size} | {
        "framework": framework
    }


def peak(setup: Setup) -> tuple[PhaseName, Parts]:
    """Return the phase that needs most, with its parts in bytes."""
    return max(phases(setup).items(), key=lambda item: sum(item[1].values()))


def allocated(parts: Mapping[str, int]) -> int:
    """Return what torch.cuda.max_memory_allocated says of a phase: all but what lies outside of its blocks."""
    return sum(size for name, size in parts.items() if name not in OUTSIDE)


def interval(
    parts: Mapping[str, float], spread: Mapping[str, tuple[float, float]] = SPREAD
) -> tuple[float, float, float]:
    """Return the low, expected and high sum of parts: their deviations are independent, so their squares add up."""
    expected, below, above = sum(parts.values()), 0.0, 0.0
    for name, size in parts.items():
        low, high = spread.get(name, (1.0, 1.0))
        below += ((1 - low) * size) ** 2
        above += ((high - 1) * size) ** 2
    return expected - math.sqrt(below), expected, expected + math.sqrt(above)
