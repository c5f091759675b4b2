"""Attention of packed rows on CPUs, one document at a time: what varlen kernels do on a GPU, by torch's own kernel.

Under a block-diagonal mask `scaled_dot_product_attention` still computes every pair of tokens in a row: S*S, where n
documents of S/n tokens need S*S/n, and half of that as they are causal. Rows of 2,048 tokens with documents of 270 take
a seventh of the time. The documents are told by position ids that restart, as FlashAttention's are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

NAME = "sdpa_documents"
"""The implementation's name in transformers' registry: https://huggingface.co/docs/transformers/attention_interface

It is not in the registry of masks, and so no mask is built for it (transformers/masking_utils.py,
`_preprocess_mask_arguments`)."""


def use_document_attention(model: Any) -> None:
    """Let a model that was made with `sdpa` attend document by document."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output (B, S, heads, d) of query (B, heads, S, d), key and value (B, kv heads, S, d).

    `options` are what transformers hands to any implementation: position_ids (B or 1, S), dropout, scaling,
    sliding_window. Raises ValueError for a mask, or without position ids: documents could not be told apart.
    """
    positions = options.get("position_ids")
    if attention_mask is not None or positions is None or options.get("softcap") is not None:
        raise ValueError(f"{NAME} takes position ids that restart at each document, no mask and no softcap")
    rows = []
    for row in range(query.shape[0]):
        lengths = document_lengths(positions[row if positions.shape[0] > 1 else 0])
        parts = (tensor[row : row + 1].split(lengths, dim=2) for tensor in (query, key, value))
        documents = [_attend_document(q, k, v, options) for q, k, v in zip(*parts, strict=True)]
        rows.append(torch.cat(documents, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _attend_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Return causal attention of one document, (1, heads, its length, d)."""
    mask = _window_mask(query.shape[2], options.get("sliding_window"), query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def document_lengths(positions: torch.Tensor) -> list[int]:
    """Return the lengths of the documents of a row from its position ids (S): one begins wherever they do not go on."""
    starts = (positions.diff() != 1).nonzero().flatten() + 1
    edges = [0, *starts.tolist(), len(positions)]
    return [last - first for first, last in pairwise(edges)]


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask (length, length) of a document that is longer than a sliding window; None for others.

    A token sees `window` tokens, itself among them (transformers/masking_utils.py, `sliding_window_overlay`).
    """
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)
