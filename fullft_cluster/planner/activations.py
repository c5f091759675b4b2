"""What a GPU keeps of the forward pass: activations of the layers, logits and loss. In bytes.

After Korthikanti et al., https://arxiv.org/abs/2205.05198, for grouped-query attention and gated MLPs, and without the
term in sequence squared: FlashAttention (https://arxiv.org/abs/2205.14135) never stores probabilities. torch's sdpa
neither, but it needs a mask where rows are packed; eager attention does.
"""

from __future__ import annotations

from fullft_cluster.hardware import CPU
from fullft_cluster.planner.setup import Loss, Setup

FP32 = 4

LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits our chunked loss holds at once (train/loss.py)."""

LOSS_BYTES: dict[Loss, int] = {"naive": 12, "chunked": 8, "liger": 0, "fused": 0, "in_output": 12, "shifted": 16}
"""fp32 bytes per token and vocabulary entry at the worst moment, counted to the byte by a TorchDispatchMode
(transformers 5.23). In the backward pass of the loss: the log-softmax, the gradient of the chosen log-probabilities and
the gradient of the log-softmax; chunked: the logits of a chunk and their log-softmax, in the forward pass. shifted: the
cast logits in the model's output too, which later versions keep as they are."""

LOSS_ELEMENTS: dict[Loss, int] = {"naive": 0, "chunked": 0, "liger": 1, "fused": 2, "in_output": 1, "shifted": 0}
"""Tensors of logits in the training precision beside them: in the model's output; liger: logits that their gradient
replaces; fused: logits and their gradient."""

NORM_STATISTICS_BYTES = 8
"""The two norms' fp32 reciprocal deviations, per token."""


def layer_bytes_per_token(setup: Setup) -> int:
    """Return what one layer keeps for its backward pass, per token.

    Two norms: RMSNorm keeps an fp32 copy, the normalised and the scaled activations (LayerNorm its input and output);
    attention: q, k and v after the rotation, its output, and the softmax's fp32 log-sum of each head; MLP: gate, its
    activation, up and product if gated, else the hidden layer before and after GELU. With e bytes an element, H heads:
    ``2h(4 + 2e) + 8 + 2e(q + k) + 4H + 4ei``. LLaMA-7B in bf16: 46.5 h. Equal to the saved tensors of transformers 5.23
    to the byte, in bf16 and fp32, with and without grouped queries. Liger's kernels keep a norm's input and output
    alone, and compute the gate's activation again: 3ei (liger_kernel/ops/rms_norm.py, swiglu.py).
    """
    model, e = setup.model, setup.element_bytes
    plain = model.norm_bias or setup.liger_kernel
    norms = 2 * model.hidden_size * (2 * e if plain else FP32 + 2 * e) + NORM_STATISTICS_BYTES
    attention = 2 * e * (model.query_size + model.key_value_size) + FP32 * model.num_attention_heads
    mlp = (3 if setup.liger_kernel else 4 if model.gated_mlp else 2) * e * model.intermediate_size
    return norms + attention + mlp + pair_bytes_per_token(setup)


def pair_bytes_per_token(setup: Setup) -> int:
    """Return what attention keeps of pairs of tokens, per token and layer.

    sdpa, on GPUs: the mask of packed rows as numbers to add, ``e s``. eager: the probabilities of every head in fp32,
    and as they are multiplied with the values, ``(4 + e) H s`` (modeling_llama.py, `eager_attention_forward`).
    """
    model, e = setup.model, setup.element_bytes
    if setup.attention == "eager":
        return (FP32 + e) * model.num_attention_heads * setup.seq_len
    return e * setup.seq_len if setup.attention == "sdpa" and setup.gpu != CPU else 0


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
    attention += pair_bytes_per_token(setup)
    return setup.tokens * (max(mlp, attention) + model.hidden_size * (FP32 + 2 * e))


def layer_backward(setup: Setup) -> int:
    """Return the working set of one layer's backward pass: recomputed activations, and gradients of its MLP, or of
    eager attention's probabilities."""
    model, e = setup.model, setup.element_bytes
    recomputed = layer_bytes_per_token(setup) if setup.activation_checkpointing else 0
    pairs = pair_bytes_per_token(setup) if setup.attention == "eager" else 0
    return setup.tokens * (recomputed + max(e * (2 * model.intermediate_size + model.hidden_size), pairs))


def logits_and_loss(setup: Setup) -> int:
    """Return logits, loss and their gradients, with what the final norm keeps: ``t (c V + h(4 + 3e) + 4)``.

    c is of LOSS_BYTES and LOSS_ELEMENTS. 3e: the normalised hidden states, those at which a token is to be predicted,
    and their gradient. A chunked loss holds the logits of a chunk, and the weight's gradient from there on.
    """
    norm = setup.model.hidden_size * (FP32 + 3 * setup.element_bytes) + NORM_STATISTICS_BYTES // 2
    return logits(setup) + setup.tokens * norm


def logits(setup: Setup) -> int:
    """Return the tensors of the vocabulary's width at the worst moment of the loss.

    It is the loss itself, or the product after it: the gradient of the logits, ``e V c``, beside the gradient of
    lm_head's weight, ``e V h``. Where chunks follow each other (`_ChunkedLoss`), the latter is there from the first on.
    """
    model, e = setup.model, setup.element_bytes
    chunk = loss_chunk(setup)
    several = chunk < setup.tokens or setup.loss == "liger"
    softmax = (LOSS_BYTES[setup.loss] + e * LOSS_ELEMENTS[setup.loss]) * chunk
    return model.vocab_size * max(softmax + several * e * model.hidden_size, e * (chunk + model.hidden_size))


def loss_chunk(setup: Setup) -> int:
    """Return the tokens whose logits exist at once. Liger: so many that they are no larger than the hidden states
    (liger_kernel/ops/fused_linear_cross_entropy.py, `inc_factor`)."""
    if setup.loss == "chunked":
        return min(setup.tokens, LOSS_CHUNK_TOKENS)
    if setup.loss != "liger":
        return setup.tokens
    times = -(-setup.model.vocab_size // setup.model.hidden_size)
    return min(1 << (-(-setup.tokens // times) - 1).bit_length(), setup.tokens)
