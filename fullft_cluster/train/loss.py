"""The loss of a micro-batch: a sum over tokens, which the engine scales to the whole global batch.

Logits are computed where a token is to be predicted alone: under masked prompts that spares most of the last matrix
product. All of it happens within one call of ``lm_head``, so that ZeRO-3's and FSDP's hooks gather its weight once
forward and once backward, on every rank alike, however many labels a rank has (also none).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from fullft_cluster.plan import Loss
from fullft_cluster.planner.activations import LOSS_CHUNK_TOKENS
from fullft_cluster.train.data import IGNORE


def loss_of(model: Any, inputs: dict[str, Any], labels: torch.Tensor, kind: Loss) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) of all labelled tokens of a micro-batch, in float32.

    ``model`` is what is to be called: a transformers causal model, or the engine around it. Labels (B, S) may stay on
    the CPU, which spares the GPU a wait for their number. Position t predicts label t+1; the first token of a row has
    none, so rows laid end to end do not mix.
    """
    _teach(getattr(model, "module", model))
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    positions = (shifted != IGNORE).nonzero().flatten()
    device = inputs["input_ids"].device
    targets = shifted[positions].to(device, non_blocking=True)
    loss: torch.Tensor = model(
        **inputs, positions=positions.to(device, non_blocking=True), targets=targets, loss_kind=kind
    )
    return loss


def token_loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return what `loss_of` does from logits (B, S, V) that are there already."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    return F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), reduction="sum")


def _teach(model: Any) -> None:
    """Let a causal model return the loss where it is given ``targets``; without, it is what it was.

    Its own ``forward`` is what has to be replaced: a call of it is what sets off the engines' hooks.
    """
    if isinstance(vars(model).get("forward"), _LossForward):
        return
    head = model.get_output_embeddings()
    model.forward = _LossForward(model, model.forward)
    head.forward = partial(_head_loss, head, head.forward)


class _LossForward:
    """The forward of a causal model, and of its loss."""

    def __init__(self, model: Any, original: Any) -> None:
        self._model, self._original = model, original

    def __call__(self, *args: Any, targets: torch.Tensor | None = None, **inputs: Any) -> Any:
        if targets is None:
            return self._original(*args, **inputs)
        positions, kind = inputs.pop("positions"), inputs.pop("loss_kind")
        states = self._model.base_model(*args, **inputs).last_hidden_state.flatten(0, 1)
        states = states.index_select(0, positions)  # by the same name, so that the rest of them is freed
        return self._model.get_output_embeddings()(states, targets, kind)


def _head_loss(
    head: torch.nn.Linear,
    original: Any,
    states: torch.Tensor,
    targets: torch.Tensor | None = None,
    kind: Loss = "naive",
) -> torch.Tensor:
    """Be ``lm_head``: return logits, or with targets the loss of hidden states (N, h)."""
    if targets is None:
        logits: torch.Tensor = original(states)
        return logits
    if kind == "chunked":
        loss: torch.Tensor = _ChunkedLoss.apply(states, head.weight, targets, torch.is_grad_enabled())
        return loss
    if kind == "liger" and targets.numel():  # its kernels take no empty batch
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE, reduction="sum")(head.weight, states, targets)
    return F.cross_entropy(original(states).float(), targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy of a linear layer; logits exist for LOSS_CHUNK_TOKENS tokens at a time.

    The gradients are computed in the forward pass, as Liger's kernel does (https://arxiv.org/abs/2410.10989, section
    3.2): nothing is computed twice, and no logits are kept. The backward pass comes right after and only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, with_gradients: bool
    ) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        grad_states = torch.empty_like(states) if with_gradients else None
        grad_weight: torch.Tensor | None = None
        for begin in range(0, max(len(targets), 1), LOSS_CHUNK_TOKENS):
            part = slice(begin, begin + LOSS_CHUNK_TOKENS)
            wanted = targets[part, None]
            log_probabilities = F.log_softmax((states[part] @ weight.T).float(), dim=-1)
            loss -= log_probabilities.gather(1, wanted).sum()
            if grad_states is None:
                continue
            probabilities = log_probabilities.exp_()
            probabilities.scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0))
            gradient = probabilities.to(weight.dtype)
            del log_probabilities, probabilities
            torch.mm(gradient, weight, out=grad_states[part])
            if grad_weight is None:
                grad_weight = gradient.T @ states[part]
            else:  # rounded to the weight's precision once a chunk, as gradients of micro-steps are
                grad_weight.addmm_(gradient.T, states[part])
            del gradient  # before the next chunk's logits
        if with_gradients:
            ctx.save_for_backward(grad_states, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states.mul_(scale), grad_weight.mul_(scale), None, None
