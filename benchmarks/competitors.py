"""What other planners say: their formulas re-stated, each with its source and what it leaves out.

Re-stated and not called, as two of them need a Hub id and the network, and one a model object in memory. A test
compares the first and the last with what is installed. All amounts in bytes; every tool is used to its own advantage:
with the model's true sizes, and with what it knows of ZeRO and offload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fullft_cluster.model import ModelSpec


@dataclass(frozen=True)
class Case:
    """A run as all tools are asked about it: full fine-tuning with AdamW in bf16 mixed precision."""

    model: ModelSpec
    gpus: int
    nodes: int
    micro_batch_size: int
    seq_len: int
    activation_checkpointing: bool
    zero_stage: int = 3
    offload_optimizer: bool = False
    offload_param: bool = False
    zero_init: bool = True

    @property
    def tokens(self) -> int:
        """Return the tokens that a GPU computes at once."""
        return self.micro_batch_size * self.seq_len


@dataclass(frozen=True)
class Tool:
    """A planner: its GPU formula, where it stands, and what it does not know of."""

    name: str
    source: str
    leaves_out: str
    gpu_bytes: Callable[[Case], int]
    host_bytes: Callable[[Case], int] | None = None


def largest_module(model: ModelSpec) -> int:
    """Return the parameters of the largest leaf module: what DeepSpeed's ``largest_layer_params`` counts."""
    return model.largest_tensor


def deepspeed_gpu(case: Case) -> int:
    """Return the ``per GPU`` of estimate_zero{2,3}_model_states_mem_needs.

    ZeRO-3: ``4 l + 18 P/N``, ``4 l + 2 P/N`` with the optimizer offloaded, ``4 l`` with the parameters too, l the
    largest layer; ZeRO-2: ``2 P + 18 P/N``, ``2 P``.
    """
    parameters, layer = case.model.parameters, 4 * largest_module(case.model)
    if case.zero_stage == 3:
        if case.offload_param:
            return layer
        return layer + int((2 if case.offload_optimizer else 18) * parameters / case.gpus)
    return 2 * parameters + (0 if case.offload_optimizer else int(18 * parameters / case.gpus))


def deepspeed_host(case: Case, additional_buffer_factor: float = 1.5) -> int:
    """Return the ``per CPU`` (a node's) of the same functions; 1.5 is their default factor."""
    parameters, per_node = case.model.parameters, case.gpus // case.nodes
    if case.zero_stage < 3:
        share = max(4 * case.gpus, 16) if case.offload_optimizer else 4 * per_node
        return int(parameters * share * additional_buffer_factor)
    if not case.offload_optimizer:
        whole = largest_module(case.model) if case.zero_init else parameters
        return int(whole * 4 * per_node * additional_buffer_factor)
    share_zero3 = (18 if case.offload_param else 16) / case.nodes
    if not case.zero_init:
        share_zero3 = max(4 * per_node, share_zero3)
    return int(parameters * share_zero3 * additional_buffer_factor)


ELEUTHER_ALLGATHER_BUCKET = 500_000_000
ELEUTHER_MAX_LIVE = 1_000_000_000


def eleuther_gpu(case: Case) -> int:
    """Return the ``Per-GPU Memory Required for Training`` of calc_transformer_mem.py with its other defaults.

    ``sbhL 34`` with recomputation and ``sbhL (34 + 5 a s/h)`` without: recomputation drops only the attention matrix,
    and there is no FlashAttention. Gradients are 4 B a parameter, buckets are two of its arguments' defaults.
    """
    model, h, layers = case.model, case.model.hidden_size, case.model.num_hidden_layers
    mlp = (3 if model.gated_mlp else 2) * layers * h * model.intermediate_size
    attention = int(2 * (1 + model.num_key_value_heads / model.num_attention_heads) * layers * h * h)
    parameters = 2 * model.vocab_size * h + h * case.seq_len + 8 * h * layers + 2 * h + attention + mlp
    weights = 2 * parameters / (case.gpus if case.zero_stage == 3 else 1)
    gradients = 4 * parameters / (case.gpus if case.zero_stage >= 2 else 1)
    optimizer = 12 * parameters / (case.gpus if case.zero_stage >= 1 else 1)
    buckets = 0
    if case.gpus > 1:
        buckets = 2 * (ELEUTHER_ALLGATHER_BUCKET + (ELEUTHER_MAX_LIVE if case.zero_stage == 3 else 0))
    matrix = 0.0 if case.activation_checkpointing else 5 * model.num_attention_heads * case.seq_len / h
    activations = case.tokens * h * layers * (34 + matrix)
    return int(weights + gradients + optimizer + buckets + activations)


def llm_analysis_gpu(case: Case) -> int:
    """Return ``(weight+op_state+grad+act)_memory_per_gpu`` of llm-analysis with full or no recomputation.

    18 B a parameter of its own count (MLPs of two matrices of 4h, as its shipped LLaMA configurations have, tied
    embeddings), sharded by stage; ``2 sbhL`` with recomputation, else ``sbhL 41 + 8 a s b L``; the logits once in bf16,
    at micro-batch 1 twice (it adds them to one sample's memory, and then to the micro-batch's, which is the same).
    """
    model, h, layers = case.model, case.model.hidden_size, case.model.num_hidden_layers
    heads, tokens = model.num_attention_heads, case.tokens
    layer = 2 * h * h + 2 * h * h * model.num_key_value_heads // heads + 8 * h * h + 2 * h
    parameters = layers * layer + model.vocab_size * h + h
    weights = 2 * parameters / (case.gpus if case.zero_stage == 3 else 1)
    gradients = 4 * parameters / (case.gpus if case.zero_stage >= 2 else 1)
    optimizer = 12 * parameters / (case.gpus if case.zero_stage >= 1 else 1)
    if case.activation_checkpointing:
        activations, last = 2 * tokens * h * layers, 2 * model.vocab_size * tokens
    else:
        activations = (41 * tokens * h + 8 * heads * tokens) * layers
        last = 2 * model.vocab_size * tokens + 4 * tokens * h
    times = 2 if case.micro_batch_size == 1 else 1
    return int(weights + gradients + optimizer + activations + times * last)


def bekman_gpu(case: Case) -> int:
    """Return 18 B a parameter, sharded by stage: 6 for weights in two precisions, 8 for AdamW, 4 for gradients.

    "Plus activation memory and temp memory", for which the book gives no formula, nor one for offload: its figure is
    the same with it.
    """
    parameters, gpus = case.model.parameters, case.gpus
    weights = 2 * parameters / (gpus if case.zero_stage == 3 else 1)
    gradients = 4 * parameters / (gpus if case.zero_stage >= 2 else 1)
    return int(weights + gradients + 12 * parameters / gpus)


def accelerate_gpu(case: Case) -> int:
    """Return ``Training using Adam`` of ``accelerate estimate-memory --dtypes float16``: 8 B a parameter, on one GPU.

    The maximum of fp32 weights (4), gradients (6) and AdamW's moments (8); it knows no sharding and no batch.
    """
    return 8 * case.model.parameters


TOOLS = (
    Tool(
        "DeepSpeed estimator",
        "https://github.com/deepspeedai/DeepSpeed/blob/v0.14.2/deepspeed/runtime/zero/stage3.py "
        "(estimate_zero3_model_states_mem_needs; ZeRO-2: stage_1_and_2.py)",
        "activations, logits, buckets, gathered parameters; counts fp32 gradients that are there for a sub-group alone",
        deepspeed_gpu,
        deepspeed_host,
    ),
    Tool(
        "EleutherAI cookbook",
        "https://github.com/EleutherAI/cookbook/blob/069ae2ef9f69f8fb3f1413272015ccb59f3d4a6c/calc/calc_transformer_mem.py",
        "FlashAttention, recomputation of whole layers, logits, offload, grouped-query attention's activations",
        eleuther_gpu,
    ),
    Tool(
        "llm-analysis 0.2.2",
        "https://github.com/cli99/llm-analysis/blob/main/llm_analysis/analysis.py (LLMAnalysis.training)",
        "the working set of the recomputed layer, fp32 logits, buckets, gathered parameters, offload, gated MLPs",
        llm_analysis_gpu,
    ),
    Tool(
        "Bekman's 18 B",
        "https://github.com/stas00/ml-engineering/tree/master/training/performance#anatomy-of-models-memory-usage",
        "activations, temporary memory and offload, named but without a formula",
        bekman_gpu,
    ),
    Tool(
        "accelerate estimate-memory",
        "https://github.com/huggingface/accelerate/blob/v1.1.0/src/accelerate/commands/estimate.py",
        "sharding, offload, batch and sequence: batch 1 on one GPU",
        accelerate_gpu,
    ),
)
