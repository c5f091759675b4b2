"""Seconds of an optimizer step from first principles: arithmetic, memory traffic, communication, host. Not a
measurement.

A micro-step computes (matrix products, attention, element-wise passes) and communicates what ZeRO shards; a step adds
the optimizer. Three constants are fitted to published runs (docs/backtest.md), each has a physical meaning, and
`planner.calibration` replaces what they say by a run's own figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fullft_cluster.hardware import CPU, Cluster, Gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.planner.setup import Setup
from fullft_cluster.planner.sharding import FP32, shard

# --- fitted to the rows of benchmarks/data (benchmarks/fit.py says how; a test says that these are what it finds)

MATMUL_EFFICIENCY = 0.89
"""Share of the best matrix product's speed (`Gpu.matmul_share` of the peak) that the products of a model's shapes
reach."""

EXPOSED = 1.11
"""Seconds lost per second that communication would take at the links' nominal speed: NCCL reaches about 0.8 of it, and
under full sharding next to nothing of it was hidden in the published runs."""

DEEPSPEED_SLOWDOWN = 1.57
"""Computing under transformers + DeepSpeed over the same work in LLM-foundry's FSDP: hooks around each module, the
caching allocator's synchronisations, unfused kernels beyond those counted in ELEMENTWISE."""

# --- taken from elsewhere

ATTENTION = {"fsdp": 0.6, "deepspeed": 1.0}
"""Speed of a stack's attention against FlashAttention 2 (`Gpu.attention_share` of the peak). LLM-foundry's rows are
from the time of FlashAttention 1, which reaches 25 to 40 % on an A100. https://arxiv.org/abs/2307.08691, abstract."""

HBM_EFFICIENCY = 0.8
"""Share of the memory's nominal speed that element-wise kernels reach, as STREAM does. https://arxiv.org/abs/1804.06826"""

ELEMENTWISE = {"fsdp": 40, "deepspeed": 150}
"""Bytes of memory traffic per token, layer and hidden unit in the forward pass, outside of matrix products, in bf16;
the backward pass takes twice as much. fsdp: two LayerNorms, two residual sums, GELU on 4h. deepspeed: transformers'
LLaMA as written, two RMSNorms in fp32 step by step (72), rotation of q and k (34), gated MLP (27), residuals (12)."""

FUSED_ELEMENTWISE = 44
"""The same where Liger's kernels or torch.compile fuse what surrounds the matrix products: two RMSNorms that read and
write once (8), rotation of q and k (8), gated MLP (16), residuals (12). By counting; nothing was fitted to it."""

WHOLE_SQUARE = 2
"""Attention under an explicit mask computes every pair of tokens; causal kernels skip half of them."""

EAGER_BYTES = 22
"""Bytes of memory traffic per token, head and position that eager attention takes in a forward pass, in bf16: scores
written, masked, to fp32, softmax, to bf16, read (modeling_llama.py, `eager_attention_forward`)."""

HOST_BYTES_PER_PARAMETER = 52
"""Memory traffic on the host for one parameter of an offloaded step: gradient to fp32 (6), its norm (4), unscaling and
clipping (8), Adam itself (28), the bf16 copy (6). deepspeed/runtime/zero/stage3.py, csrc/includes/cpu_adam.h."""

HOST_GB_PER_SECOND = 20
"""What an offloaded step's element-wise work reaches of a node's memory, all workers together: launchers give a worker
one thread unless told otherwise, and eight of them stream 2 to 3 GB/s each through unfused operators. The three
published
rows with offload say 17 to 20 s for a 7B (benchmarks/data); machines with more threads a worker do better. Default."""

OPTIMIZER_BYTES_PER_PARAMETER = 46
"""Memory traffic on the GPU for one parameter of a step: norm, cast and clipping of the gradient (18), Adam (28)."""

SPREAD = {"fsdp": 0.16, "deepspeed": 0.20}
"""Relative half-width of the interval that holds nine of ten published runs of a stack, on one node."""
MEASURED_GPUS = ("a100-80gb", "a100-40gb", "a800-80gb")
SPREAD_OTHER_GPU = 0.30
"""More of it for other GPUs than those that the constants were learnt on: LLM-foundry's early H100 runs are a third
slower than this forecasts, later ones of other stacks are not (docs/backtest.md)."""
SPREAD_NETWORK = {"one": 0.2, "several": 0.4}
"""Relative uncertainty of the time that is spent on communication, within a node and between nodes (topology, other
jobs' traffic): it counts by the share of a step that this is, so slow networks make wide intervals. Default."""
SPREAD_KERNELS = 0.15
"""More of it for kernels that no fitted run had: Liger's, torch.compile's, attention other than FlashAttention.
Default."""
SPREAD_OFFLOAD = 0.40
"""More of it where the host works: its memory and cores differ more than GPUs do. Default."""

SIGNAL_MARGIN_SECONDS = 60
"""For the agreement of the workers, the files' digests and the scheduler's own clock. Default."""

SIGNAL_MOST_SECONDS = 65535
"""``sbatch --signal`` takes no more. https://slurm.schedmd.com/sbatch.html#OPT_signal"""


@dataclass(frozen=True)
class Constants:
    """What is fitted; `benchmarks/fit.py` varies it."""

    matmul_efficiency: float = MATMUL_EFFICIENCY
    exposed: float = EXPOSED
    deepspeed_slowdown: float = DEEPSPEED_SLOWDOWN


SHIPPED = Constants()


def flops_per_token(model: ModelSpec, seq_len: int, *, recompute: bool) -> float:
    """Return the FLOPs of training on one token, forward and backward, all GPUs together.

    ``6 N + 6 L s q``: two FLOPs a weight forward and four backward, for the N weights that multiply (not the embedding
    table), and causal attention over half of the sequence (https://arxiv.org/abs/2204.02311, appendix B).
    Recomputation runs the forward pass once more: 8 in place of 6.
    """
    passes = 8 if recompute else 6
    return float(passes * (multiplying(model) + model.num_hidden_layers * seq_len * model.query_size))


def multiplying(model: ModelSpec) -> int:
    """Return the weights that take part in matrix products: not a table that is only looked up."""
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return model.parameters - looked_up - model.learned_positions * model.hidden_size


def compute_seconds(setup: Setup, gpu: Gpu, constants: Constants = SHIPPED) -> dict[str, float]:
    """Return the seconds of one micro-step's computing on one GPU, by cause.

    matrix products: 6 N t, and with recomputation 2 t more for the weights of the layers, but for the last matrix of
    each: torch's checkpoint stops as soon as everything that was saved is there again, and nobody needs that product
    (torch/utils/checkpoint.py, `set_checkpoint_early_stop`). attention: forward ``2 L s q`` FLOPs a token (causal),
    backward 2.5 times that, recomputation once more (https://arxiv.org/abs/2307.08691, section 4.1). element-wise:
    ELEMENTWISE bytes once forward, twice backward.
    """
    model, again = setup.model, int(setup.activation_checkpointing)
    recomputed = model.layer_parameters - model.hidden_size * model.intermediate_size
    matmul = 6 * multiplying(model) + 2 * again * model.num_hidden_layers * recomputed
    attention = (3.5 + again) * 2 * model.num_hidden_layers * setup.seq_len * model.query_size
    fused = setup.liger_kernel or setup.torch_compile
    by_unit = model.hidden_size * (FUSED_ELEMENTWISE if fused else ELEMENTWISE[setup.stack])
    if setup.attention != "flash_attention_2" and setup.gpu != CPU:
        attention *= WHOLE_SQUARE
        by_unit += EAGER_BYTES * model.num_attention_heads * setup.seq_len if setup.attention == "eager" else 0
    passes = by_unit * setup.element_bytes / 2 * model.num_hidden_layers
    peak = gpu.peak_tflops * 1e12
    slowdown = constants.deepspeed_slowdown if setup.stack == "deepspeed" else 1.0
    if setup.gpu == CPU:  # one figure for everything: there is no sheet of data for a core
        return {"computing": setup.tokens * (matmul + attention) / (peak * gpu.matmul_share)}
    seconds = {
        "matrix_products": matmul / (peak * gpu.matmul_share * constants.matmul_efficiency),
        "attention": attention / (peak * gpu.attention_share * ATTENTION[setup.stack]),
        "elementwise": (3 + again) * passes / (gpu.memory_gb_per_second * 1e9 * HBM_EFFICIENCY),
    }
    return {name: setup.tokens * value * slowdown for name, value in seconds.items()}


def communication_seconds(setup: Setup, cluster: Cluster, constants: Constants = SHIPPED) -> float:
    """Return the seconds that a micro-step waits for the network.

    ZeRO-3 and FSDP gather the parameters for the forward and for the backward pass and scatter the gradients: 3 times
    ``e P`` (n - 1) / n bytes through each GPU's link, and through each node's where there are several
    (https://arxiv.org/abs/1910.02054, section 7); our FSDP's gradients are in fp32, ``4 P``. hpZ gathers for the
    backward pass within the node. ZeRO-2 scatters the gradients in each micro-step and gathers the parameters once a
    step, ZeRO-1 does both once a step.
    """
    size = setup.element_bytes * setup.model.parameters
    inside, between = cluster.intra_node_gb_per_second * 1e9, cluster.inter_node_gb_per_second * 1e9
    wide = min(inside, between) if setup.nodes > 1 else inside
    ring = (setup.gpus - 1) / setup.gpus / wide
    if setup.zero_stage == 3:
        local = (setup.hpz - 1) / setup.hpz / inside if setup.hpz > 1 else ring
        gradients = FP32 * setup.model.parameters if setup.own_fsdp else size
        seconds = size * (ring + local) + gradients * ring
    elif setup.zero_stage == 2:
        seconds = size * ring * (1 + 1 / setup.accumulation)
    else:
        seconds = size * ring * 2 / setup.accumulation
    return constants.exposed * seconds


def optimizer_seconds(setup: Setup, gpu: Gpu) -> dict[str, float]:
    """Return the seconds of an optimizer step: on the GPU, or over the host's link and on its cores where offloaded.

    Offloaded, each GPU takes its parameters and sends its gradients; where gradients are accumulated, those so far come
    back in each micro-step to be added to (stage3.py, `partition_grads`): ``2 e (accumulation + 1)`` bytes a parameter
    of its shard. FSDP sends those of each micro-step, in fp32, and sums on the host. The node does
    HOST_BYTES_PER_PARAMETER of memory traffic for each parameter that it holds.
    """
    elements = shard(setup)
    if setup.gpu == CPU:
        return {}
    if setup.offload == "none":
        moved = OPTIMIZER_BYTES_PER_PARAMETER * elements
        return {"optimizer": moved / (gpu.memory_gb_per_second * 1e9 * HBM_EFFICIENCY)}
    crossings = 2 * setup.accumulation + 2 if setup.accumulation > 1 else 2
    crossed = FP32 * setup.accumulation if setup.engine == "fsdp" else crossings * setup.element_bytes
    link = crossed * elements / (gpu.host_gb_per_second * 1e9)
    on_node = HOST_BYTES_PER_PARAMETER * elements * setup.gpus_per_node
    return {"host_link": link, "optimizer_on_host": on_node / (HOST_GB_PER_SECOND * 1e9)}


def parameter_offload_seconds(setup: Setup, gpu: Gpu) -> float:
    """Return what a micro-step waits for parameters that live on the host: each GPU brings in its shard twice, FSDP as
    the fp32 masters."""
    if setup.offload != "parameters" or setup.gpu == CPU:
        return 0.0
    size = FP32 if setup.engine == "fsdp" else setup.element_bytes
    return 2 * size * shard(setup) / (gpu.host_gb_per_second * 1e9)


def step_seconds(setup: Setup, gpu: Gpu, cluster: Cluster, constants: Constants = SHIPPED) -> dict[str, float]:
    """Return the seconds of an expected optimizer step by cause; their sum is the step."""
    micro: dict[str, float] = {
        **compute_seconds(setup, gpu, constants),
        "communication": communication_seconds(setup, cluster, constants) if setup.gpus > 1 else 0.0,
        "parameters_from_host": parameter_offload_seconds(setup, gpu),
    }
    parts = {name: setup.accumulation * seconds for name, seconds in micro.items()}
    return {name: seconds for name, seconds in {**parts, **optimizer_seconds(setup, gpu)}.items() if seconds}


def spread(setup: Setup, parts: Mapping[str, float]) -> float:
    """Return the relative half-width of the interval around a step of these parts: deviations' squares add up."""
    waiting = parts.get("communication", 0.0) / max(sum(parts.values()), 1e-12)
    squares = SPREAD[setup.stack] ** 2
    squares += SPREAD_OTHER_GPU**2 if setup.gpu not in (*MEASURED_GPUS, CPU) else 0
    squares += (waiting * SPREAD_NETWORK["several" if setup.nodes > 1 else "one"]) ** 2
    other = setup.liger_kernel or setup.torch_compile or setup.attention != "flash_attention_2"
    squares += SPREAD_KERNELS**2 if other and setup.gpu != CPU else 0
    squares += SPREAD_OFFLOAD**2 if setup.offload != "none" else 0
    return float(squares**0.5)


def checkpoint_seconds(checkpoint_bytes: int, cluster: Cluster) -> float:
    """Return the seconds that writing a checkpoint takes at the file system's speed; training waits for it."""
    return checkpoint_bytes / (cluster.filesystem_write_gb_per_second * 1e9)


def signal_lead_seconds(slow_step_seconds: float, checkpoint_bytes: int, cluster: Cluster) -> int:
    """Return how long before the end the warning has to come: a slow step, a checkpoint and a margin, in whole
    seconds."""
    lead = -(-(slow_step_seconds + checkpoint_seconds(checkpoint_bytes, cluster) + SIGNAL_MARGIN_SECONDS) // 1)
    return int(min(max(lead, SIGNAL_MARGIN_SECONDS), SIGNAL_MOST_SECONDS))


def describe(parts: Mapping[str, float]) -> str:
    """Return the parts of a step in words, the largest first: ``matrix products 61 %, communication 20 %``."""
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{name.replace('_', ' ')} {value / whole:.0%}" for name, value in ordered if value / whole >= 0.01
    )
