"""Every number of a plan with its formula, source and origin."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_cluster.plan import Origin, Quantity, Time
from fullft_cluster.planner import activations, calibration, defaults, kernels, speed, storage
from fullft_cluster.planner.setup import Setup
from fullft_cluster.planner.task import BYTES_PER_TOKEN, Choice, Data, Task
from fullft_cluster.units import GB, GIB

ZERO = "ZeRO, https://arxiv.org/abs/1910.02054"
STAGE3 = "deepspeed/runtime/zero/stage3.py"
STAGE12 = "deepspeed/runtime/zero/stage_1_and_2.py"
KORTHIKANTI = "Korthikanti et al., https://arxiv.org/abs/2205.05198"

PARTS: dict[str, tuple[str, str, Origin]] = {
    # part: (formula, source, origin); e = bytes of an element: 2 in bf16, 4 in fp32
    "parameters": ("e x parameters / gpus (ZeRO-3); e x parameters (ZeRO-1, 2)", ZERO, "derived"),
    "gradients": ("e x parameters / gpus", ZERO, "derived"),
    "optimizer_states": ("12 x parameters / gpus (fp32 master weight, two moments)", ZERO, "derived"),
    "secondary_parameters": ("e x parameters / gpus_per_node", "ZeRO++, https://arxiv.org/abs/2306.10209", "derived"),
    "persistent_parameters": (
        "e x elements of tensors below stage3_param_persistence_threshold",
        "the DeepSpeed JSON; partition_parameters.py",
        "derived",
    ),
    "gathered_parameters": (
        "e x min(parameters, stage3_max_live_parameters + the largest tensor), at least a layer",
        "the DeepSpeed JSON; partitioned_param_coordinator.py",
        "derived",
    ),
    "reduce_bucket": ("e x reduce_bucket_size", f"the DeepSpeed JSON; {STAGE3}", "derived"),
    "reducing": (
        "e x the larger of two MLP matrices and the largest tensor (ZeRO-3)",
        f"the DeepSpeed JSON; {STAGE3}",
        "derived",
    ),
    "gradients_in_backward": ("e x parameters / gpus (ZeRO-2); e x parameters (ZeRO-1)", STAGE12, "derived"),
    "activations": (
        "recomputing: layers x e x hidden x tokens; else layers x (2h(4 + 2e) + 8 + 2e(q + k) + 4H + 4ei) x tokens; "
        "sdpa: + e s for the mask of packed rows, eager: + (4 + e) H s; Liger's kernels: 4eh + 3ei for norms and MLP",
        f"{KORTHIKANTI}; no s^2 term with FlashAttention, https://arxiv.org/abs/2205.14135",
        "derived",
    ),
    "layer_forward": (
        "tokens x (the larger of the MLP's and the attention's tensors + h(4 + 2e))",
        f"{KORTHIKANTI}; modeling_llama.py",
        "derived",
    ),
    "layer_backward": (
        "tokens x (recomputed layer 2h(4 + 2e) + 8 + 2e(q + k) + 4H + 4ei, and gradients e(2i + h))",
        f"{KORTHIKANTI}; modeling_llama.py",
        "derived",
    ),
    "logits_and_loss": (
        "tokens x (12 x vocab + hidden x (4 + 3e) + 4); chunked: 8 x vocab x chunk, liger: e x vocab x chunk, "
        "and e x vocab x hidden for the weight's gradient, in place of 12 x vocab x tokens",
        "cross entropy in fp32: log-softmax and two gradients, in the backward pass; train/loss.py",
        "derived",
    ),
    "optimizer_step": ("(e + 4) x min(sub_group_size, parameters / gpus)", STAGE3, "derived"),
    "fragmentation": ("5 % of what is not a flat shard", "assumed, planner/memory.py", "default"),
    "framework": (
        "CUDA context and cuBLAS 0.55 GiB, NCCL 1.45 GiB (0.7 GiB on CPUs)",
        "https://github.com/stas00/ml-engineering/tree/master/training/performance, measured on an A100",
        "default",
    ),
}

_FSDP2 = "FSDP2, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html"
OF_FSDP: dict[str, tuple[str, str, Origin]] = {
    "parameters": ("4 x parameters / gpus (fp32 masters)", _FSDP2, "derived"),
    "gradients": ("4 x parameters / gpus", _FSDP2, "derived"),
    "optimizer_states": ("8 x parameters / gpus (two moments)", _FSDP2, "derived"),
    "gathered_parameters": ("e x (two layers + what is outside of the layers)", _FSDP2, "derived"),
    "reducing": ("(e + 4) x the larger of a layer and what is outside of the layers", _FSDP2, "derived"),
}
"""The parts that FSDP has other formulas for."""

HOST_PARTS = {
    "workers": "4 GiB a process; on CPUs the processes' whole memory",
    "offloaded": "(16 + e) x the node's share of the parameters (+ e with the parameters); page-locked "
    "blocks rounded up to powers of 2",
    "weights": "e x parameters, whole on rank 0 while it loads; on every rank under ZeRO-1 and 2",
    "export": "a file of 5 GB, the largest tensor in fp32 and 1 GiB of the mapped checkpoint, on rank 0 at the end",
    "checkpoint_shards": "12 x the node's share of the parameters, while a run resumes",
}


def quantities(task: Task, choice: Choice, time: Time, data: Data) -> tuple[Quantity, ...]:
    """Return every number of the plan that has a formula."""
    return (
        *_mathematics(task, choice, data),
        *kernels.quantities(task.config, choice.setup),
        *_memory(task, choice),
        *_rule_of_thumb(choice.setup),
        *_storage(choice),
        *_time(task, choice, time, data),
    )


def _given(value: object) -> Origin:
    return "given" if value is not None else "default"


def _mathematics(task: Task, choice: Choice, data: Data) -> Iterator[Quantity]:
    model, train, wanted = task.model, task.config.train, task.wanted
    shape = "sum over the tensors of the architecture; LLaMA: 2Vh + L(2hq + 2hk + 3hi + 2h) + h"
    yield Quantity(
        name="parameters",
        value=model.parameters,
        unit="1",
        formula=shape,
        source="the model's config",
        origin="derived",
    )
    rate = train.learning_rate or defaults.learning_rate(model.parameters)
    by_size = "by parameters: 1e-5 for 7B, 5e-6 for 13B, 2e-6 for 30B, 1e-6 for 65B"
    yield Quantity(
        name="learning_rate", value=rate, unit="1", formula=by_size, source="usual advice for full fine-tuning",
        origin=_given(train.learning_rate),
    )  # fmt: skip
    yield Quantity(
        name="epochs", value=train.epochs or defaults.epochs(data.rows), unit="passes",
        formula="by rows: 3 under 10,000, 2 to 100,000, 1 above", source="usual advice for full fine-tuning",
        origin=_given(train.epochs),
    )  # fmt: skip
    yield Quantity(
        name="global_batch_size", value=choice.global_batch, unit="sequences",
        formula="micro_batch_size x gradient_accumulation_steps x gpus", source="exact; default 64",
        origin=_given(train.global_batch_size),
    )  # fmt: skip
    yield Quantity(
        name="micro_batch_size", value=choice.batch.micro, unit="sequences",
        formula="the largest divisor of global_batch_size / gpus that fits, up to 16384 tokens (4096 on CPUs)",
        source="planner/search.py",
        origin="given" if wanted.micro_batch_size else "derived",
    )  # fmt: skip


def _memory(task: Task, choice: Choice) -> Iterator[Quantity]:
    low, expected, high = (size / GIB for size in choice.gpu_bytes)
    seen: set[str] = set()
    for phase, parts in choice.gpu_phases.items():
        for name, value in parts.items():
            formula, source, origin = (PARTS | OF_FSDP if choice.setup.engine == "fsdp" else PARTS)[name]
            label = f"gpu.{name}" if name not in seen else f"gpu.{phase}.{name}"
            if name in seen and value == choice.gpu_phases["backward"].get(name, -1):
                continue
            seen.add(name)
            yield Quantity(name=label, value=value / GIB, unit="GiB", formula=formula, source=source, origin=origin)
    yield Quantity(
        name="gpu.expected", value=expected, unit="GiB",
        formula=f"sum of the parts in the phase with the highest peak: {choice.phase}",
        source="planner/memory.py", origin="derived",
    )  # fmt: skip
    for name, end in (("gpu.low", low), ("gpu.high", high)):
        yield Quantity(
            name=name, value=end, unit="GiB", formula="expected and the root of the squares of the parts' deviations",
            source="SPREAD in planner/memory.py", origin="derived",
        )  # fmt: skip
    yield Quantity(
        name="gpu.capacity", value=choice.gpu_capacity / GIB, unit="GiB", formula="as the device reports it",
        source=task.gpu.memory_source, origin="default",
    )  # fmt: skip
    for name, formula in HOST_PARTS.items():
        size = max(parts.get(name, 0) for parts in choice.host_phases.values())
        if size:
            yield Quantity(
                name=f"host.{name}", value=size / GIB, unit="GiB", formula=formula, source="planner/storage.py",
                origin="derived",
            )  # fmt: skip


def _rule_of_thumb(setup: Setup) -> Iterator[Quantity]:
    """Yield the widespread rule beside ours, because it is off by two orders of magnitude."""
    yield Quantity(
        name="activations_without_recomputation", value=activations.all_layers(setup) / GIB, unit="GiB",
        formula="layers x (2h(4 + 2e) + 8 + 2e(q + k) + 4H + 4ei) x tokens: grows with layers x hidden, not parameters",
        source=KORTHIKANTI, origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="activations_with_recomputation", value=activations.checkpoints(setup) / GIB, unit="GiB",
        formula="layers x e x hidden x tokens", source=KORTHIKANTI, origin="derived",
    )  # fmt: skip
    rule = 0.1 * setup.tokens * setup.model.parameters
    yield Quantity(
        name="activations_by_rule_of_thumb", value=rule / GIB, unit="GiB",
        formula="0.1 x batch x seq x params: widespread, wrong by two orders of magnitude, used nowhere here",
        source="folklore; compare the two lines above", origin="derived",
    )  # fmt: skip


def _storage(choice: Choice) -> Iterator[Quantity]:
    setup = choice.setup
    per = 12 if setup.zero_stage == 3 else 14
    yield Quantity(
        name="checkpoint", value=storage.checkpoint_bytes(setup) / GB, unit="GB", formula=f"{per} x parameters",
        source="measured: DeepSpeed 0.19 writes the fp32 master weights and two moments (and, under ZeRO-1 and 2, the "
        "weights)", origin="measured",
    )  # fmt: skip
    yield Quantity(
        name="export", value=storage.export_bytes(setup.model.parameters, setup.precision) / GB, unit="GB",
        formula="e x parameters", source="safetensors in the training precision", origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="disk", value=choice.disk_bytes / GB, unit="GB",
        formula="(save_total_limit + 1 in flight) x checkpoint + export"
        + (" + 2 x export (best, and a better one in flight)" if choice.keeps_best else ""),
        source="retention deletes only after a newer checkpoint is committed", origin="derived",
    )  # fmt: skip


def _length(time: Time) -> Iterator[Quantity]:
    """Yield the numbers of the whole run, where its length is known."""
    if time.hours is None or time.gpu_hours is None or time.total_steps is None:
        return
    yield Quantity(
        name="total_steps", value=time.total_steps, unit="steps",
        formula="tokens of all passes / (global_batch_size x seq_len), rounded up; at most max_steps",
        source=time.tokens_source, origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="hours", value=time.hours.expected, unit="h",
        formula="total_steps x step_seconds + a checkpoint each save_steps and at the end + the export",
        source="planner/task.py; loading, queueing and repeated steps after a failure are not in it", origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="gpu_hours", value=time.gpu_hours.expected, unit="h", formula="hours x gpus", source="planner/assemble.py",
        origin="derived",
    )  # fmt: skip
    if time.cost is not None:
        yield Quantity(
            name="cost", value=time.cost.expected, unit="of the price", formula="gpu_hours x price_per_gpu_hour",
            source="the price as given, or the cluster profile's", origin="derived",
        )  # fmt: skip


TIME_PARTS: dict[str, tuple[str, str]] = {
    "matrix_products": ("(6 N + 2 N of what is recomputed) x tokens / (peak x matmul_share x 0.89)",
                        "planner/speed.py"),
    "attention": ("(3.5 or 4.5) x 2 x layers x seq_len x q x tokens / (peak x attention_share)",
                  "FlashAttention 2, https://arxiv.org/abs/2307.08691"),
    "elementwise": ("(3 or 4) x bytes of a pass x layers x hidden x tokens / (HBM's speed x 0.8)", "planner/speed.py"),
    "computing": ("FLOPs / (peak x matmul_share)", "configs/gpus.yaml"),
    "communication": ("3 x e x parameters x (gpus - 1) / gpus / the narrower link, x exposed, a micro-step",
                      ZERO),
    "parameters_from_host": ("2 x e x shard / host link, a micro-step", "planner/speed.py"),
    "host_link": ("2 x e x shard / host link", "planner/speed.py"),
    "optimizer_on_host": ("52 bytes x the node's share / 20 GB/s", "planner/speed.py"),
    "optimizer": ("46 bytes x shard / (memory's speed x 0.8)", "planner/speed.py"),
}  # fmt: skip


def _time(task: Task, choice: Choice, time: Time, data: Data) -> Iterator[Quantity]:
    recompute = choice.variant.activation_checkpointing
    flops = speed.flops_per_token(task.model, task.config.train.seq_len, recompute=recompute)
    yield Quantity(
        name="flops_per_token", value=flops, unit="FLOP",
        formula="8 (recomputing) or 6, x (weights that multiply + layers x seq_len x q)",
        source="PaLM, https://arxiv.org/abs/2204.02311, appendix B, with half of its attention: it is causal",
        origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="peak", value=task.gpu.peak_tflops, unit="TFLOP/s", formula="dense bf16", source=task.gpu.peak_source,
        origin="default",
    )  # fmt: skip
    for name, seconds in time.step_parts.items():
        formula, source = TIME_PARTS[name]
        yield Quantity(name=f"step.{name}", value=seconds, unit="s", formula=formula, source=source, origin="derived")
    measured: Origin = "measured" if calibration.nearest(choice.setup, task.measured) else "derived"
    yield Quantity(
        name="step_seconds", value=time.step_seconds.expected, unit="s", formula="sum of the parts of a step",
        source=time.basis, origin=measured,
    )  # fmt: skip
    if data.tokens:
        yield Quantity(
            name="tokens_in_a_pass", value=data.tokens, unit="tokens", formula=f"bytes of text / {BYTES_PER_TOKEN:g}",
            source="planner/task.py", origin="default",
        )  # fmt: skip
    yield from _length(time)
    yield Quantity(
        name="checkpoint_seconds", value=time.checkpoint_seconds, unit="s",
        formula="checkpoint / filesystem_write_gb_per_second", source="the cluster profile", origin="derived",
    )  # fmt: skip
    lead = speed.signal_lead_seconds(time.step_seconds.high, storage.checkpoint_bytes(choice.setup), task.cluster)
    yield Quantity(
        name="signal_lead_seconds", value=lead, unit="s",
        formula="a slow step + checkpoint_seconds + 60, rounded up, 60 to 65535",
        source="the cluster profile; https://slurm.schedmd.com/sbatch.html#OPT_signal", origin="derived",
    )  # fmt: skip
