"""Host memory of a node, and bytes on disk."""

from __future__ import annotations

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Precision
from fullft_cluster.planner.memory import BYTES, FP32, OPTIMIZER_BYTES, Setup, peak
from fullft_cluster.units import GIB

HOST_PROCESS_BYTES = 4 * GIB
"""A worker with CUDA, torch and deepspeed loaded, and its data. Default."""

OFFLOADED_BYTES = OPTIMIZER_BYTES + FP32
"""Bytes a parameter in host memory with the optimizer offloaded, besides gradients in the training precision: master
weight, two moments, fp32 gradient (stage3.py, `initialize_optimizer_states`)."""


def checkpoint_bytes(parameters: int) -> int:
    """Return the bytes of a ZeRO-3 checkpoint: 12 a parameter, master weight and two moments.

    Measured with DeepSpeed 0.19: there is no 16-bit copy in it.
    """
    return OPTIMIZER_BYTES * parameters


def export_bytes(parameters: int, precision: Precision) -> int:
    """Return the bytes of the exported weights: 2 a parameter in bf16, 4 in fp32."""
    return BYTES[precision] * parameters


def disk_bytes(parameters: int, precision: Precision, kept: int) -> int:
    """Return what a run takes on disk: the kept checkpoints, one in flight, and the export."""
    return (kept + 1) * checkpoint_bytes(parameters) + export_bytes(parameters, precision)


def host_parts(setup: Setup, nodes: int) -> dict[str, int]:
    """Return the parts of a node's host memory at its peak, in bytes.

    While a run resumes, each process holds its shard of the checkpoint beside what the optimizer keeps on the host;
    while it loads or exports, rank 0 holds the weights whole. The larger of the two counts.
    """
    processes = -(-setup.gpus // nodes)
    share = -(-setup.model.parameters * processes // setup.gpus)
    weights = export_bytes(setup.model.parameters, setup.precision)
    passing = {"load_or_export": max(weights, checkpoint_bytes(share))}
    if setup.gpu == CPU:
        return {"workers": processes * sum(peak(setup)[1].values()), **passing}
    parts = {"workers": processes * HOST_PROCESS_BYTES, **passing}
    if setup.offload == "optimizer":
        parts["offloaded_optimizer"] = share * (OFFLOADED_BYTES + setup.element_bytes)
    return parts
