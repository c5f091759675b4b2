"""Planning: from a configuration, a model and a cluster to a Plan. Pure: no clock, network, environment, cluster call.

`memory` and `storage` say what a layout takes, `layout` and `batch` which there are, `search` chooses, `speed`
forecasts, `defaults` fills in the mathematics, `explain` says why.
"""

from __future__ import annotations

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import Cluster, load_gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import GpuMemory, Memory, Plan, PlannedModel
from fullft_cluster.planner import defaults, speed, storage
from fullft_cluster.planner.explain import quantities, why
from fullft_cluster.planner.search import Choice, Task, choose
from fullft_cluster.units import GB, GIB

__all__ = ["make_plan"]


def make_plan(config: Config, model: ModelSpec, cluster: Cluster, rows: int | None) -> Plan:
    """Return the plan with the fewest GPUs that fits; ``rows`` of the data, or None where they are not known.

    Raises UsageError for what cannot be meant (a sequence longer than the model's, constraints that exclude each other,
    a batch that does not divide: with the nearest valid values) and DoesNotFitError for what fits no allowed layout
    (with the shortfall and the nearest plan that fits).
    """
    if config.train.seq_len > model.max_position_embeddings:
        what = f"{config.train.seq_len} is more than the {model.max_position_embeddings} positions of {model.name}"
        raise UsageError(Problem("train.seq_len", what, f"Write at most {model.max_position_embeddings}."))
    task = Task(config, model, cluster, load_gpu(cluster.gpu))
    return _plan(task, choose(task), rows)


def _plan(task: Task, choice: Choice, rows: int | None) -> Plan:
    """Return the plan of a choice."""
    config, model, train = task.config, task.model, task.config.train
    flops = speed.flops_per_token(model, train.seq_len, recompute=task.activation_checkpointing)
    tokens = choice.global_batch * train.seq_len
    time = speed.forecast(flops, tokens, choice.layout.gpus, task.gpu, train.max_steps)
    checkpoint = storage.checkpoint_bytes(model.parameters)
    return Plan(
        model=PlannedModel(
            name=model.name,
            model_type=model.model_type,
            parameters=model.parameters,
            num_hidden_layers=model.num_hidden_layers,
            hidden_size=model.hidden_size,
            vocab_size=model.vocab_size,
        ),
        cluster=task.cluster.name,
        gpu=task.cluster.gpu,
        precision=train.precision,
        nodes=choice.layout.nodes,
        gpus=choice.layout.gpus,
        gpus_per_node=choice.layout.gpus_per_node,
        micro_batch_size=choice.batch.micro,
        gradient_accumulation_steps=choice.batch.accumulation,
        activation_checkpointing=task.activation_checkpointing,
        offload=task.wanted.offload,
        global_batch_size=choice.global_batch,
        seq_len=train.seq_len,
        learning_rate=train.learning_rate or defaults.learning_rate(model.parameters),
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        epochs=train.epochs or defaults.epochs(rows),
        max_steps=train.max_steps,
        rows=rows,
        seed=train.seed,
        memory=_memory(choice),
        checkpoint_gb=checkpoint / GB,
        export_gb=storage.export_bytes(model.parameters, train.precision) / GB,
        disk_gb=storage.disk_bytes(model.parameters, train.precision, config.output.save_total_limit) / GB,
        time=time,
        signal_lead_seconds=speed.signal_lead_seconds(time.step_seconds, checkpoint, task.cluster),
        why=why(task, choice, rows),
        quantities=quantities(task, choice, time, rows),
    )


def _memory(choice: Choice) -> Memory:
    """Return the memory of a choice in GiB; the expected amount is the very sum of the parts."""
    parts = {name: value / GIB for name, value in choice.gpu_parts.items() if value}
    return Memory(
        gpu=GpuMemory(parts=parts, expected_gib=sum(parts.values()), capacity_gib=choice.gpu_capacity / GIB),
        host_gib_per_node=choice.host_bytes / GIB,
        host_capacity_gib_per_node=choice.host_capacity / GIB,
    )
