"""The loss of a micro-batch: a sum over tokens, which the engine scales to the whole global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) of all labelled tokens, in float32.

    Position t predicts label t+1. The first token of a row has no label, so rows laid end to end do not mix.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), reduction="sum")
