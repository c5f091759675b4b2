"""Which attention a model runs with, and how its inputs say which documents are apart."""

from __future__ import annotations

import torch

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Attention
from fullft_cluster.train.data import Batch
from fullft_cluster.train.setup import Job


def choose_attention(job: Job, device: torch.device) -> Attention:
    """Return the attention to run with, and say it in rank 0's log with the reason.

    Raises UsageError where one was asked for that cannot run here.
    """
    wanted = job.config.resources.attn_implementation
    chosen = attention_implementation(device, job.plan.precision, wanted)
    if job.identity.rank == 0:
        lacking = no_flash(device, job.plan.precision)
        reason = "as asked for" if wanted else f"flash_attention_2 {lacking}" if lacking else "the fastest there is"
        print(f"attention: {chosen} ({reason})", flush=True)
    return chosen


def attention_implementation(device: torch.device, precision: str, wanted: Attention | None = None) -> Attention:
    """Return what is wanted, else `flash_attention_2` where it can run, else `sdpa`; every torch has that.

    All three, `eager` too, keep packed documents apart. Raises UsageError for FlashAttention where it cannot run.
    """
    lacking = no_flash(device, precision) if wanted in (None, "flash_attention_2") else None
    if wanted and lacking:
        fix = "Write sdpa, or leave it out: the fastest that can run is taken then."
        raise UsageError(Problem("resources.attn_implementation", f"flash_attention_2 {lacking}", fix))
    return wanted or ("sdpa" if lacking else "flash_attention_2")


def no_flash(device: torch.device, precision: str) -> str | None:
    """Return why FlashAttention 2 cannot run here; None where it can.

    Its kernels are for CUDA and 16-bit numbers: https://github.com/Dao-AILab/flash-attention
    """
    from transformers.utils import is_flash_attn_2_available

    if device.type != "cuda":
        return f"has kernels for CUDA GPUs alone, and this is a {device.type.upper()}"
    if precision != "bf16":
        return f"has kernels for 16-bit numbers alone, and train.precision is {precision}"
    return None if is_flash_attn_2_available() else "is not installed (pip install flash-attn)"


def model_inputs(batch: Batch, device: torch.device, *, flatten: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the model's arguments, and the labels on the CPU, where `loss_of` wants them; shape (B, S), or (1, B*S)
    where `flatten`.

    Documents are kept apart by position ids that restart. That holds only without an attention mask and without a cache
    (transformers/masking_utils.py, `find_packed_sequence_indices`); FlashAttention's varlen kernels are used only for a
    single row (modeling_flash_attention_utils.py, `_is_packed_sequence`), so the rows are laid end to end for it.
    """
    ids, labels, positions = (torch.from_numpy(array) for array in (batch.input_ids, batch.labels, batch.position_ids))
    if flatten:
        ids, labels, positions = (tensor.view(1, -1) for tensor in (ids, labels, positions))
    ids, positions = (tensor.to(device, non_blocking=True) for tensor in (ids, positions))
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}, labels
