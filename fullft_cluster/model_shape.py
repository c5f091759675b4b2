"""The noun ModelSpec: the shape of a decoder-only transformer, with its tensors and its exact parameter count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from fullft_cluster.plan import Frozen

ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "phi3", "mpt"]
"""As a config.json names it. ``mpt`` (MosaicML, https://github.com/mosaicml/llm-foundry) is known for its published
measurements alone: it is not trained here."""
Count = Annotated[int, Meta(ge=1, le=10**7)]


class Tensor(Frozen, frozen=True):
    """A weight: its name within the model or layer, and its number of elements."""

    name: str
    elements: int


class ModelSpec(Frozen, frozen=True, kw_only=True):
    """The architecture, and where its weights come from by default. Sizes are in elements."""

    name: str
    model_type: ModelType
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    tie_word_embeddings: bool
    attention_bias: bool
    max_position_embeddings: Count
    mlp_bias: bool = False
    gated_mlp: bool = True
    """Gate, up and down (SwiGLU); False = up and down alone (GELU)."""
    norm_bias: bool = False
    """Whether the norms have a bias: LayerNorm; without, RMSNorm."""
    learned_positions: int = 0
    """Rows of a table of learned positions; 0 = rotary positions, which have no weights."""
    weights: str | None = None
    """The preset's default: a hub id or ``random``; a directory that holds weights; None where nothing is known."""
    tokenizer: str | None = None
    """Absolute path of a tokenizer directory that the preset brings; None = the weights' own."""
    hf_config: dict[str, Any]
    """What goes into config.json."""

    def __hash__(self) -> int:
        """Return a hash of the sizes: the config that is kept beside them has none. Equal models have equal sizes."""
        return hash((self.name, self.hidden_size, self.num_hidden_layers, self.vocab_size))

    @property
    def query_size(self) -> int:
        """Return the width of the queries: heads x head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Return the width of the keys (and of the values): key-value heads x head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def longest_sequence(self) -> int:
        """Return the positions that the model is made for, in tokens, with the scaling that its config names.

        ``linear``, ``dynamic`` and ``yarn`` stretch the positions of the original model by a factor;
        ``max_position_embeddings`` holds them stretched already, or not, as the model's maker chose. The other kinds
        (``llama3``, ``longrope``) always have them stretched.
        https://huggingface.co/docs/transformers/main/en/internal/rope_utils
        """
        scaling = self.hf_config.get("rope_scaling") or self.hf_config.get("rope_parameters")
        if not isinstance(scaling, dict):
            return self.max_position_embeddings
        kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
        if kind not in ("linear", "dynamic", "yarn") or not isinstance(factor, int | float) or not 1 <= factor <= 1e4:
            return self.max_position_embeddings
        original = scaling.get("original_max_position_embeddings")
        unscaled = original if isinstance(original, int) and original > 0 else self.max_position_embeddings
        return max(self.max_position_embeddings, int(unscaled * factor))

    def layer_tensors(self) -> Iterator[Tensor]:
        """Yield the weights of one decoder layer, as transformers' modeling_llama.py and its siblings make them."""
        yield from self._attention_tensors()
        yield from self._mlp_tensors()
        yield from self._norm_tensors("input_layernorm", self.hidden_size)
        yield from self._norm_tensors("post_attention_layernorm", self.hidden_size)

    def _attention_tensors(self) -> Iterator[Tensor]:
        h, q, kv = self.hidden_size, self.query_size, self.key_value_size
        if self.model_type in ("phi3", "mpt"):  # one matrix for queries, keys and values
            projections = {"qkv_proj": q + 2 * kv}
        else:
            projections = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        yield from (Tensor(name=f"self_attn.{name}.weight", elements=h * size) for name, size in projections.items())
        yield Tensor(name="self_attn.o_proj.weight", elements=q * h)
        if self.attention_bias:
            yield from (Tensor(name=f"self_attn.{name}.bias", elements=size) for name, size in projections.items())
            if self.model_type != "qwen2":  # it has biases on q, k and v alone
                yield Tensor(name="self_attn.o_proj.bias", elements=h)
        if self.model_type == "qwen3":
            yield from (Tensor(name=f"self_attn.{name}_norm.weight", elements=self.head_dim) for name in ("q", "k"))

    def _mlp_tensors(self) -> Iterator[Tensor]:
        h, i = self.hidden_size, self.intermediate_size
        if not self.gated_mlp:
            rows = {"up_proj": i, "down_proj": h}
        elif self.model_type == "phi3":
            rows = {"gate_up_proj": 2 * i, "down_proj": h}
        else:
            rows = {"gate_proj": i, "up_proj": i, "down_proj": h}
        for name, size in rows.items():
            yield Tensor(name=f"mlp.{name}.weight", elements=i * h if name == "down_proj" else h * size)
        if self.mlp_bias:
            yield from (Tensor(name=f"mlp.{name}.bias", elements=size) for name, size in rows.items())

    def _norm_tensors(self, name: str, size: int) -> Iterator[Tensor]:
        yield Tensor(name=f"{name}.weight", elements=size)
        if self.norm_bias:
            yield Tensor(name=f"{name}.bias", elements=size)

    def outer_tensors(self) -> Iterator[Tensor]:
        """Yield the weights outside the layers; tied embeddings are one tensor."""
        yield Tensor(name="model.embed_tokens.weight", elements=self.vocab_size * self.hidden_size)
        if self.learned_positions:
            yield Tensor(name="model.embed_positions.weight", elements=self.learned_positions * self.hidden_size)
        yield from self._norm_tensors("model.norm", self.hidden_size)
        if not self.tie_word_embeddings:
            yield Tensor(name="lm_head.weight", elements=self.vocab_size * self.hidden_size)

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one decoder layer."""
        return sum(tensor.elements for tensor in self.layer_tensors())

    @property
    def parameters(self) -> int:
        """Return the exact parameter count: outer tensors + layers x tensors of a layer.

        For LLaMA without biases: ``2Vh + L(2hq + 2hk + 3hi + 2h) + h`` with q and k the widths of queries and keys.
        """
        return sum(tensor.elements for tensor in self.outer_tensors()) + self.num_hidden_layers * self.layer_parameters

    @property
    def largest_tensor(self) -> int:
        """Return the elements of the largest single weight."""
        return max(t.elements for tensors in (self.layer_tensors(), self.outer_tensors()) for t in tensors)
