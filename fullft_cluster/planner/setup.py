"""The noun Setup: what decides the memory and the speed of one GPU. `memory`, `storage` and `speed` are functions of
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Attention, Engine, Offload, Precision, ZeroStage

BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
"""Bytes of an element of parameters, gradients and activations."""

Loss = Literal["naive", "chunked", "liger", "fused", "in_output", "shifted"]
"""How the loss is computed. ``naive``: logits of the whole micro-batch, cast to fp32; ``chunked``: by pieces of the
sequence; ``liger``: by Liger's kernel (all three: train/loss.py). Of published runs alone: ``fused``, one kernel that
writes the gradient in 16 bits (flash-attn's, LLM-foundry); ``in_output``: by the model itself (``labels=``), whose
output keeps the logits; ``shifted``: the same in transformers up to 4.44, which cast the logits before it kept them and
shifted a copy (modeling_llama.py, `LlamaForCausalLM.forward`)."""


@dataclass(frozen=True)
class Setup:
    """One GPU's part of a run."""

    model: ModelSpec
    gpu: str
    gpus: int
    nodes: int
    micro_batch_size: int
    seq_len: int
    activation_checkpointing: bool
    precision: Precision
    offload: Offload
    zero: Mapping[str, Any]
    """The ``zero_optimization`` of the DeepSpeed JSON."""
    accumulation: int = 1
    engine: Engine = "deepspeed"
    loss: Loss = "naive"
    attention: Attention = "flash_attention_2"
    liger_kernel: bool = False
    """Liger's fused RMSNorm, rotary embedding and SwiGLU."""
    torch_compile: bool = False
    weights_in_graph: bool = False
    """Whether autograd keeps every gathered weight of ZeRO-3 until its backward pass: where activations are kept and
    F.linear
    was not replaced (``memory_efficient_linear``, zero/linear.py), as in older DeepSpeed without zero.Init. Not
    here."""
    pure_bf16: bool = False
    """FSDP alone: master weights and moments in bf16 too."""
    own_fsdp: bool = False
    """FSDP alone: our own engine (train/fsdp_engine.py), which runs transformers' layers, sums gradients in fp32 and
    whose AdamW works without temporaries (torch's ``fused=True``); not LLM-foundry's, of which the published runs are,
    where a step takes 20 bytes a parameter at its peak instead of 16."""

    @property
    def stack(self) -> Engine:
        """Return whose code computes: LLM-foundry's under FSDP in the published runs, else transformers' layers."""
        return "fsdp" if self.engine == "fsdp" and not self.own_fsdp else "deepspeed"

    @property
    def tokens(self) -> int:
        """Return the tokens that a GPU computes at once."""
        return self.micro_batch_size * self.seq_len

    @property
    def element_bytes(self) -> int:
        """Return the bytes of an element of parameters and activations."""
        return BYTES[self.precision]

    @property
    def zero_stage(self) -> ZeroStage:
        """Return what is sharded: 1 optimizer states, 2 gradients too, 3 parameters too. FSDP's full shard is 3."""
        stage: ZeroStage = self.zero["stage"] if self.engine == "deepspeed" else 3
        return stage

    @property
    def hpz(self) -> int:
        """Return over how many GPUs the second copy of the parameters is sharded (ZeRO++ hpZ); 1 = there is none."""
        return int(self.zero.get("zero_hpz_partition_size", 1))

    @property
    def gpus_per_node(self) -> int:
        """Return the GPUs of a node."""
        return -(-self.gpus // self.nodes)
