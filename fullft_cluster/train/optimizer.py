"""What the optimizer is told: which weights decay, and how the learning rate goes."""

from __future__ import annotations

import math
from typing import Any


def warmup_steps(total_steps: int, ratio: float) -> int:
    """Return the steps of warm-up: transformers' rounding (up), but never all steps, or nothing would be learnt."""
    return min(math.ceil(total_steps * ratio), max(total_steps - 1, 0))


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices decay, norms and biases (one dimension) do not.

    Under zero.Init a parameter's own shape is empty; `ds_shape` is the true one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
