"""What a GPU keeps of the forward pass: activations of the layers, logits and loss. In bytes.

After Korthikanti et al., https://arxiv.org/abs/2205.05198, for grouped-query attention and gated MLPs, and without the
term in sequence squared: FlashAttention (https://arxiv.org/abs/2205.14135) and torch's sdpa never store probabilities.
"""

from __future__ import annotations

from fullft_cluster.planner.setup import Loss, Setup

FP32 = 4

LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits a chunked loss holds at once: what TRL's and torchtune's chunked losses take by default or less.
https://github.com/huggingface/trl/pull/5575"""

LOSS_BYTES: dict[Loss, int] = {"naive": 12, "chunked": 12, "fused": 0, "in_output": 12, "shifted": 16}
"""fp32 bytes per token and vocabulary entry at the worst moment, in the backward pass of the loss: the log-softmax, the
gradient of the chosen log-probabilities and the gradient of the log-softmax (counted to the byte by a
TorchDispatchMode,
transformers 5.23). shifted: the cast logits in the model's output too, which later versions keep as they are."""

LOSS_ELEMENTS: dict[Loss, int] = {"naive": 0, "chunked": 0, "fused": 2, "in_output": 1, "shifted": 0}
"""Tensors of logits in the training precision beside them: in the model's output; fused: logits and their gradient."""

NORM_STATISTICS_BYTES = 8
"""The two norms' fp32 reciprocal deviations, per token."""


def layer_bytes_per_token(setup: Setup) -> int:
    """Return what one layer keeps for its backward pass, per token.

    Two norms: RMSNorm keeps an fp32 copy, the normalised and the scaled activations (LayerNorm its input and output);
    attention: q, k and v after the rotation, its output, and the softmax's fp32 log-sum of each head; MLP: gate, its
    activation, up and product if gated, else the hidden layer before and after GELU. With e bytes an element, H heads:
    ``2h(4 + 2e) + 8 + 2e(q + k) + 4H + 4ei``. LLaMA-7B in bf16: 46.5 h. Equal to the saved tensors of transformers 5.23
    to the byte, in bf16 and fp32, with and without grouped queries.
    """
    model, e = setup.model, setup.element_bytes
    norms = 2 * model.hidden_size * (2 * e if model.norm_bias else FP32 + 2 * e) + NORM_STATISTICS_BYTES
    attention = 2 * e * (model.query_size + model.key_value_size) + FP32 * model.num_attention_heads
    return norms + attention + (4 if model.gated_mlp else 2) * e * model.intermediate_size


def checkpoints(setup: Setup) -> int:
    """Return the layer inputs that recomputation starts from: ``e h`` a token and layer."""
    model = setup.model
    return model.num_hidden_layers * setup.element_bytes * model.hidden_size * setup.tokens


def all_layers(setup: Setup) -> int:
    """Return the activations of all layers, where none is recomputed."""
    return setup.model.num_hidden_layers * layer_bytes_per_token(setup) * setup.tokens


def kept(setup: Setup) -> int:
    """Return the activations that outlive the forward pass."""
    return checkpoints(setup) if setup.activation_checkpointing else all_layers(setup)


def layer_forward(setup: Setup) -> int:
    """Return what the forward pass of one recomputed layer takes before it is dropped; nothing where all is kept.

    What it takes at once is less than what it would keep: the attention's tensors are gone when the MLP works.
    """
    if not setup.activation_checkpointing:
        return 0
    model, e = setup.model, setup.element_bytes
    mlp = (4 if model.gated_mlp else 2) * e * model.intermediate_size
    attention = 2 * e * (model.query_size + model.key_value_size)
    return setup.tokens * (max(mlp, attention) + model.hidden_size * (FP32 + 2 * e))


def layer_backward(setup: Setup) -> int:
    """Return the working set of one layer's backward pass: recomputed activations, and gradients of its MLP."""
    model, e = setup.model, setup.element_bytes
    recomputed = layer_bytes_per_token(setup) if setup.activation_checkpointing else 0
    return setup.tokens * (recomputed + e * (2 * model.intermediate_size + model.hidden_size))


def logits_and_loss(setup: Setup) -> int:
    """Return logits, loss and their gradients, with what the final norm keeps: ``t (c V + h(4 + 3e) + 4)``.

    c is of LOSS_BYTES and LOSS_ELEMENTS. A chunked loss holds the logits of a chunk, and the gradient of the hidden
    states, ``e h t``.
    """
    model, e = setup.model, setup.element_bytes
    chunked = setup.loss == "chunked"
    at_once = min(setup.tokens, LOSS_CHUNK_TOKENS) if chunked else setup.tokens
    norm = model.hidden_size * (FP32 + 3 * e + (e if chunked else 0)) + NORM_STATISTICS_BYTES // 2
    per_logit = LOSS_BYTES[setup.loss] + e * LOSS_ELEMENTS[setup.loss]
    return at_once * model.vocab_size * per_logit + setup.tokens * norm
