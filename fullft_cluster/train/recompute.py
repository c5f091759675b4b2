"""Recomputation of activations, for all engines alike."""

from __future__ import annotations

from typing import Any


def enable_recomputation(model: Any) -> None:
    """Recompute each layer's activations in the backward pass."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers >= 5.2
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
