"""From a layout, a batch and a variant to the Choice: what it takes."""

from __future__ import annotations

from fullft_cluster.deepspeed_json import deepspeed_json, zero_optimization
from fullft_cluster.hardware import CPU
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Plan
from fullft_cluster.planner import kernels
from fullft_cluster.planner.batch import Batch
from fullft_cluster.planner.layout import Layout
from fullft_cluster.planner.memory import phases
from fullft_cluster.planner.setup import Setup
from fullft_cluster.planner.storage import host_phases
from fullft_cluster.planner.task import Choice, Task, Variant
from fullft_cluster.units import GIB


def evaluate(task: Task, layout: Layout, batch: Batch, variant: Variant) -> Choice:
    """Return what one layout, batch and variant take."""
    config, wanted, cluster = task.config, task.wanted, task.cluster
    hpz = layout.gpus_per_node if variant.hpz and layout.nodes > 1 else 1  # within one node it is what ZeRO-3 is
    setup = Setup(
        model=task.model,
        gpu=cluster.gpu,
        gpus=layout.gpus,
        nodes=layout.nodes,
        micro_batch_size=batch.micro,
        accumulation=batch.accumulation,
        seq_len=config.train.seq_len,
        activation_checkpointing=variant.activation_checkpointing,
        precision=config.train.precision,
        offload=variant.offload,
        zero=zero_optimization(task.model.hidden_size, cluster.gpu, variant.offload, variant.zero_stage, hpz),
        engine=wanted.engine,
        own_fsdp=wanted.engine == "fsdp",
        loss=kernels.loss_kind(config),
        attention=kernels.attention_kind(config, cluster.gpu),
        liger_kernel=wanted.liger_kernel,
        torch_compile=wanted.torch_compile,
    )
    memory_gib = task.gpu.memory_gib or cluster.host_memory_gib / layout.gpus_per_node
    return Choice(
        task=task,
        layout=layout,
        batch=batch,
        variant=variant,
        setup=setup,
        gpu_phases=phases(setup),
        gpu_capacity=int(memory_gib * GIB),
        host_phases=host_phases(setup),
        host_capacity=int(cluster.host_memory_gib * GIB),
        exact=bool(wanted.micro_batch_size and (wanted.gpus or wanted.nodes) and cluster.gpu != CPU),
    )


def setup_of(plan: Plan, model: ModelSpec) -> Setup:
    """Return the situation of one GPU of a run that a plan describes."""
    return Setup(
        model=model,
        gpu=plan.gpu,
        gpus=plan.gpus,
        nodes=plan.nodes,
        micro_batch_size=plan.micro_batch_size,
        accumulation=plan.gradient_accumulation_steps,
        seq_len=plan.seq_len,
        activation_checkpointing=plan.activation_checkpointing,
        precision=plan.precision,
        offload=plan.offload,
        zero=deepspeed_json(plan)["zero_optimization"],
        engine=plan.engine,
        own_fsdp=plan.engine == "fsdp",
        loss=plan.loss,
        attention=plan.attn_implementation,
        liger_kernel=plan.liger_kernel,
        torch_compile=plan.torch_compile,
    )
