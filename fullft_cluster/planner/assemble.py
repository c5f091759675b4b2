"""From the choice to the Plan: every number that a user, a template or a worker reads."""

from __future__ import annotations

from collections.abc import Mapping

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Interval, Memory, Peaks, Phase, PhaseName, Plan, PlannedModel, Time
from fullft_cluster.planner import calibration, defaults, kernels, speed, storage
from fullft_cluster.planner.explain import quantities
from fullft_cluster.planner.memory import SPREAD, Parts, allocated, interval
from fullft_cluster.planner.options import compare
from fullft_cluster.planner.task import Choice, Data, Task
from fullft_cluster.planner.why import why
from fullft_cluster.units import GB, GIB


def assemble(task: Task, choice: Choice, data: Data) -> Plan:
    """Return the plan of a choice."""
    model, train = task.model, task.config.train
    time = forecast(task, choice, data)
    saved = storage.checkpoint_bytes(choice.setup)
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
        engine=task.wanted.engine,
        zero_stage=choice.variant.zero_stage,
        hpz=choice.setup.hpz > 1,
        precision=train.precision,
        nodes=choice.layout.nodes,
        gpus=choice.layout.gpus,
        gpus_per_node=choice.layout.gpus_per_node,
        micro_batch_size=choice.batch.micro,
        gradient_accumulation_steps=choice.batch.accumulation,
        activation_checkpointing=choice.variant.activation_checkpointing,
        offload=choice.variant.offload,
        loss=kernels.loss_kind(task.config),
        attn_implementation=choice.setup.attention,
        liger_kernel=choice.setup.liger_kernel,
        torch_compile=choice.setup.torch_compile,
        global_batch_size=choice.global_batch,
        seq_len=train.seq_len,
        learning_rate=train.learning_rate or defaults.learning_rate(model.parameters),
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        epochs=train.epochs or defaults.epochs(data.rows),
        max_steps=train.max_steps,
        rows=data.rows,
        seed=train.seed,
        memory=memory(choice),
        checkpoint_gb=saved / GB,
        export_gb=storage.export_bytes(model.parameters, train.precision) / GB,
        disk_gb=choice.disk_bytes / GB,
        disk_free_gb=task.cluster.filesystem_free_gb,
        time=time,
        signal_lead_seconds=speed.signal_lead_seconds(time.step_seconds.high, saved, task.cluster),
        why=why(task, choice, data),
        options=compare(task, choice),
        quantities=quantities(task, choice, time, data),
    )


def memory(choice: Choice) -> Memory:
    """Return the memory of a choice in GiB; each expected amount is the very sum of its parts."""
    gpu = peaks(choice.gpu_phases, SPREAD, choice.gpu_capacity)
    host = peaks(choice.host_phases, storage.SPREAD, choice.host_capacity)
    return Memory(
        gpu=gpu,
        host=host,
        host_gib_per_node=host.expected_gib,
        host_capacity_gib_per_node=host.capacity_gib,
        allocated_gib=max(allocated(parts) for parts in choice.gpu_phases.values()) / GIB,
    )


def peaks(phases: Mapping[PhaseName, Parts], spread: Mapping[str, tuple[float, float]], capacity: int) -> Peaks:
    """Return phases of parts in bytes as GiB, with the worst of them."""
    found = []
    for name, parts in phases.items():
        in_gib = {part: size / GIB for part, size in parts.items() if size}
        low, _, high = interval(in_gib, spread)
        expected = sum(in_gib.values())
        found.append(Phase(name=name, parts=in_gib, gib=Interval(low=low, expected=expected, high=high)))
    worst = max(found, key=lambda phase: phase.gib.expected)
    return Peaks(
        phases=tuple(found),
        peak=worst.name,
        parts=worst.parts,
        low_gib=max(phase.gib.low for phase in found),
        expected_gib=worst.gib.expected,
        high_gib=max(phase.gib.high for phase in found),
        capacity_gib=capacity / GIB,
    )


def forecast(task: Task, choice: Choice, data: Data) -> Time:
    """Return the speed of a choice and, where the length of the run is known, its hours and cost."""
    tokens_per_gpu = choice.tokens_per_step / choice.layout.gpus
    step, steps = choice.step, choice.steps
    speeds = Interval(
        low=tokens_per_gpu / step.high, expected=tokens_per_gpu / step.expected, high=tokens_per_gpu / step.low
    )
    flops = speed.flops_per_token(task.model, task.config.train.seq_len, recompute=False)
    hours = choice.hours if steps else None
    gpu_hours = hours.times(choice.layout.gpus) if hours else None
    price = task.price_per_gpu_hour
    return Time(
        step_seconds=step,
        step_parts=choice.step_parts,
        tokens_per_second_per_gpu=speeds,
        mfu=None if task.cluster.gpu == CPU else speeds.times(flops / (task.gpu.peak_tflops * 1e12)),
        checkpoint_seconds=speed.checkpoint_seconds(storage.checkpoint_bytes(choice.setup), task.cluster),
        tokens=steps * choice.tokens_per_step if steps else None,
        tokens_source=data.source_with(task.config.train.max_steps),
        total_steps=steps,
        hours=hours,
        gpu_hours=gpu_hours,
        cost=gpu_hours.times(price) if gpu_hours and price else None,
        basis=calibration.basis(choice.setup, task.measured),
    )
