"""The shapes of models that others measured and that are not trained here."""

from __future__ import annotations

from fullft_cluster.model_shape import ModelSpec

MPT_SIZES = {
    # n_layers, d_model, n_heads of scripts/train/yamls/mpt/ in https://github.com/mosaicml/llm-foundry
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}


def mpt_spec(size: str, seq_len: int) -> ModelSpec:
    """Return the model that LLM-foundry's benchmarks ran: `size` is 1b, 3b, 7b, 13b, 30b or 70b.

    GELU MLP of 4 x d_model, LayerNorm and all linear layers with biases, tied embeddings of 50,368 rows, learned
    positions for the sequence length of the run (MPTConfig's defaults in llmfoundry/models/mpt/configuration_mpt.py).
    """
    layers, hidden, heads = MPT_SIZES[size]
    return ModelSpec(
        name=f"mpt-{size}",
        model_type="mpt",
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        vocab_size=50368,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        norm_bias=True,
        learned_positions=seq_len,
        max_position_embeddings=seq_len,
        hf_config={},
    )
