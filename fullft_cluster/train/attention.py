"""Which attention a model runs with, and how its inputs say which documents are apart."""

from __future__ import annotations

import torch

from fullft_cluster.train.data import Batch


def attention_implementation(device: torch.device, precision: str) -> str:
    """Return `flash_attention_2` where it can be imported on CUDA, else `sdpa`; both keep packed documents apart.

    FlashAttention's kernels are for 16-bit numbers (https://github.com/Dao-AILab/flash-attention), so fp32 takes sdpa.
    """
    from transformers.utils import is_flash_attn_2_available

    possible = device.type == "cuda" and precision == "bf16"
    return "flash_attention_2" if possible and is_flash_attn_2_available() else "sdpa"


def model_inputs(batch: Batch, device: torch.device, *, flatten: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the model's arguments and the labels, shape (B, S), or (1, B*S) where `flatten`.

    Documents are kept apart by position ids that restart. That holds only without an attention mask and without a cache
    (transformers/masking_utils.py, `find_packed_sequence_indices`); FlashAttention's varlen kernels are used only for a
    single row (modeling_flash_attention_utils.py, `_is_packed_sequence`), so the rows are laid end to end for it.
    """
    ids, labels, positions = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.input_ids, batch.labels, batch.position_ids)
    )
    if flatten:
        ids, labels, positions = (tensor.view(1, -1) for tensor in (ids, labels, positions))
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}, labels
