"""Every number of a plan with its formula and source, and the sentences that say why the plan is as it is."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Origin, Quantity, Time
from fullft_cluster.planner import defaults
from fullft_cluster.planner.batch import DEFAULT_GLOBAL_BATCH
from fullft_cluster.planner.layout import Layout, candidates, count, noun
from fullft_cluster.planner.memory import Setup, checkpoint_bytes, layer_activation_bytes
from fullft_cluster.planner.search import Choice, Task, first_fit, most_tokens, on_layout
from fullft_cluster.planner.speed import flops_per_token, signal_lead_seconds
from fullft_cluster.planner.storage import checkpoint_bytes as saved_bytes
from fullft_cluster.units import GIB, in_gib

TIGHT = 0.1
"""Share of a GPU's memory below which the spare part is said to be tight: the model was up to 15 % off."""

ZERO = "ZeRO, https://arxiv.org/abs/1910.02054"
STAGE3 = "deepspeed/runtime/zero/stage3.py"
KORTHIKANTI = "Korthikanti et al., https://arxiv.org/abs/2205.05198"

PARTS: dict[str, tuple[str, str, Origin]] = {
    # part: (formula, source, origin); e = bytes of an element: 2 in bf16, 4 in fp32
    "parameters": ("e x parameters / gpus", ZERO, "derived"),
    "gradients": ("e x parameters / gpus", ZERO, "derived"),
    "optimizer_states": ("12 x parameters / gpus (fp32 master weight, two moments)", ZERO, "derived"),
    "persistent_parameters": (
        "e x elements of tensors below stage3_param_persistence_threshold",
        "the DeepSpeed JSON; partition_parameters.py",
        "derived",
    ),
    "gathered_parameters": (
        "e x (largest of a layer and a tensor + stage3_prefetch_bucket_size + stage3_max_reuse_distance / 2)",
        "the DeepSpeed JSON; partitioned_param_coordinator.py",
        "derived",
    ),
    "reduce_buckets": (
        "e x (2 x reduce_bucket_size + largest tensor); in the optimizer step one bucket",
        f"the DeepSpeed JSON; {STAGE3}",
        "derived",
    ),
    "activations": (
        "recomputing: layers x e x hidden x tokens; else layers x (2h(4 + 2e) + e(3q + 2k) + 4ei) x tokens",
        f"{KORTHIKANTI}; no s^2 term with FlashAttention, https://arxiv.org/abs/2205.14135",
        "derived",
    ),
    "layer_backward": (
        "tokens x (recomputed layer 2h(4 + 2e) + e(3q + 2k) + 4ei, and gradients e(2i + h))",
        f"{KORTHIKANTI}; modeling_llama.py",
        "derived",
    ),
    "logits_and_loss": (
        "tokens x (vocab x (e + 3 x 4) + hidden x (4 + 3e))",
        "cross entropy in fp32: log-probabilities and two gradients; torch MemTracker",
        "derived",
    ),
    "optimizer_step": ("(e + 4) x min(sub_group_size, parameters / gpus)", STAGE3, "derived"),
    "fragmentation": ("5 % of what is not a flat shard", "assumed, planner/memory.py", "default"),
    "framework": ("CUDA context, cuBLAS, NCCL: 1.5 GiB (0.7 GiB on CPUs)", "assumed, planner/memory.py", "default"),
}


def quantities(task: Task, choice: Choice, time: Time, rows: int | None) -> tuple[Quantity, ...]:
    """Return every number of the plan that has a formula."""
    return (
        *_mathematics(task, choice, rows),
        *_memory(task, choice),
        *_rule_of_thumb(choice.setup),
        *_storage(task, choice),
        *_time(task, choice, time),
    )


def _given(value: object) -> Origin:
    return "given" if value is not None else "default"


def _mathematics(task: Task, choice: Choice, rows: int | None) -> Iterator[Quantity]:
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
        name="epochs", value=train.epochs or defaults.epochs(rows), unit="passes",
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
    for name, value in choice.gpu_parts.items():
        formula, source, origin = PARTS[name]
        yield Quantity(name=f"gpu.{name}", value=value / GIB, unit="GiB", formula=formula, source=source, origin=origin)
    yield Quantity(
        name="gpu.expected", value=choice.gpu_bytes / GIB, unit="GiB",
        formula=f"sum of the parts in the phase with the highest peak: {choice.phase}",
        source="planner/memory.py", origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="gpu.capacity", value=choice.gpu_capacity / GIB, unit="GiB", formula="as the device reports it",
        source=task.gpu.memory_source, origin="default",
    )  # fmt: skip
    host = {
        "workers": "4 GiB a process; on CPUs the processes' whole memory",
        "load_or_export": "larger of the weights whole on rank 0, and the node's share of a checkpoint on resume",
        "offloaded_optimizer": "(16 + e) x the node's share of the parameters: master weight, moments, gradients",
    }
    for name, value in choice.host.items():
        yield Quantity(
            name=f"host.{name}", value=value / GIB, unit="GiB", formula=host[name], source=STAGE3, origin="derived"
        )


def _rule_of_thumb(setup: Setup) -> Iterator[Quantity]:
    """Yield the widespread rule beside ours, because it is off by two orders of magnitude."""
    full = setup.model.num_hidden_layers * layer_activation_bytes(setup) * setup.tokens
    recomputing = setup.model.num_hidden_layers * setup.element_bytes * setup.model.hidden_size * setup.tokens
    yield Quantity(
        name="activations_without_recomputation", value=full / GIB, unit="GiB",
        formula="layers x (2h(4 + 2e) + e(3q + 2k) + 4ei) x tokens: grows with layers x hidden, not with parameters",
        source=KORTHIKANTI, origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="activations_with_recomputation", value=recomputing / GIB, unit="GiB",
        formula="layers x e x hidden x tokens", source=KORTHIKANTI, origin="derived",
    )  # fmt: skip
    rule = 0.1 * setup.tokens * setup.model.parameters
    yield Quantity(
        name="activations_by_rule_of_thumb", value=rule / GIB, unit="GiB",
        formula="0.1 x batch x seq x params: widespread, wrong by two orders of magnitude, used nowhere here",
        source="folklore; compare the two lines above", origin="derived",
    )  # fmt: skip


def _storage(task: Task, choice: Choice) -> Iterator[Quantity]:
    parameters, kept = task.model.parameters, task.config.output.save_total_limit
    yield Quantity(
        name="checkpoint", value=saved_bytes(parameters) / 1e9, unit="GB", formula="12 x parameters",
        source="measured: DeepSpeed 0.19 writes the fp32 master weights and two moments", origin="measured",
    )  # fmt: skip
    yield Quantity(
        name="export", value=choice.setup.element_bytes * parameters / 1e9, unit="GB", formula="e x parameters",
        source="safetensors in the training precision", origin="derived",
    )  # fmt: skip
    disk = ((kept + 1) * saved_bytes(parameters) + choice.setup.element_bytes * parameters) / 1e9
    yield Quantity(
        name="disk", value=disk, unit="GB", formula="(save_total_limit + 1 in flight) x checkpoint + export",
        source="retention deletes only after a newer checkpoint is committed", origin="derived",
    )  # fmt: skip


def _time(task: Task, choice: Choice, time: Time) -> Iterator[Quantity]:
    flops = flops_per_token(task.model, task.config.train.seq_len, recompute=task.activation_checkpointing)
    yield Quantity(
        name="flops_per_token", value=flops, unit="FLOP",
        formula="8 (recomputing) or 6, x (weights that multiply + layers x seq_len x q)",
        source="PaLM, https://arxiv.org/abs/2204.02311, appendix B", origin="derived",
    )  # fmt: skip
    yield Quantity(
        name="utilisation", value=task.gpu.utilisation, unit="1", formula="share of the peak, assumed",
        source=task.gpu.utilisation_source, origin="default",
    )  # fmt: skip
    yield Quantity(
        name="step_seconds", value=time.step_seconds, unit="s",
        formula="flops_per_token x global_batch_size x seq_len / (gpus x peak x utilisation)",
        source=f"peak {task.gpu.peak_tflops:g} TFLOP/s: {task.gpu.peak_source}", origin="derived",
    )  # fmt: skip
    lead = signal_lead_seconds(time.step_seconds, saved_bytes(task.model.parameters), task.cluster)
    yield Quantity(
        name="signal_lead_seconds", value=lead, unit="s",
        formula="step_seconds + checkpoint / filesystem_write_gb_per_second + 60, rounded up, 60 to 65535",
        source="the cluster profile; https://slurm.schedmd.com/sbatch.html#OPT_signal", origin="derived",
    )  # fmt: skip


# --- why


def why(task: Task, choice: Choice, rows: int | None) -> tuple[str, ...]:
    """Return the sentences of the plan."""
    return (*_why_gpus(task, choice), *_why_memory(task, choice), *_why_batch(task, choice, rows))


def _why_gpus(task: Task, choice: Choice) -> Iterator[str]:
    expected, capacity = choice.gpu_bytes / GIB, choice.gpu_capacity / GIB
    gpu = task.cluster.gpu
    yield (
        f"{choice.layout.on(gpu)}: {in_gib(expected)} of {capacity:.1f} a {noun(gpu)} at the peak, "
        f"which is in the phase '{choice.phase}'."
    )
    wanted = task.wanted
    if wanted.gpus or wanted.nodes:
        fewest = first_fit(task.changed(gpus=None, nodes=None, max_gpus=None))
        if fewest and fewest.layout.gpus < choice.layout.gpus:
            yield f"So many were asked for; {fewest.layout.on(gpu)} would do."
        return
    if task.cluster.gpu == CPU:
        yield "On CPUs all processes of a node are taken: fewer would save nothing."
        return
    smaller = [layout for layout in _smaller(task, choice) if any(True for _ in on_layout(task, layout))]
    if smaller:
        *_, last = on_layout(task, smaller[-1])
        yield f"They are the fewest that fit: the next smaller layout {last.shortfall()}."


def _smaller(task: Task, choice: Choice) -> Iterator[Layout]:
    return (layout for layout in candidates(task.wanted, task.cluster) if layout.gpus < choice.layout.gpus)


def _why_memory(task: Task, choice: Choice) -> Iterator[str]:
    setup = choice.setup
    if task.activation_checkpointing:
        full = setup.model.num_hidden_layers * layer_activation_bytes(setup) * setup.tokens
        yield (
            f"Activations are recomputed: they take {in_gib(checkpoint_bytes(setup) / GIB)} where all of them would "
            f"take {in_gib(full / GIB)}, for a third more compute."
        )
    if setup.offload == "optimizer" and setup.gpu != CPU:
        yield (
            f"The optimizer works in host memory ({in_gib(choice.host['offloaded_optimizer'] / GIB, 0)} a node): fewer "
            "GPUs, slower steps."
        )
    spare = choice.gpu_capacity - choice.gpu_bytes
    if spare < TIGHT * choice.gpu_capacity and setup.gpu != CPU:
        yield (
            f"Tight: {in_gib(spare / GIB)} a GPU are spare, which is within the error of the memory model "
            "(docs/planning.md); a smaller micro-batch or more GPUs leave room."
        )
    if setup.precision == "fp32" and setup.gpu != CPU:
        yield "fp32 is meant for exact tests: the forecast of time assumes bf16's speed."


def _why_batch(task: Task, choice: Choice, rows: int | None) -> Iterator[str]:
    train = task.config.train
    if not task.wanted.micro_batch_size:
        yield (
            f"A micro-batch of {choice.batch.micro} is the largest divisor of a {noun(task.cluster.gpu)}'s share that "
            f"fits, up to {most_tokens(task.cluster.gpu)} tokens at once."
        )
    if train.global_batch_size is None and choice.global_batch != DEFAULT_GLOBAL_BATCH:
        unit = f"{count(choice.layout.gpus, noun(task.cluster.gpu))}"
        unit += f" x micro-batch {task.wanted.micro_batch_size}" if task.wanted.micro_batch_size else ""
        yield (
            f"The default global batch of {DEFAULT_GLOBAL_BATCH} does not divide by {unit}, so it is "
            f"{choice.global_batch}; give train.global_batch_size to fix it whatever the GPUs."
        )
    if train.epochs is None and rows is None:
        yield "The data's rows are not known, so epochs is the default for small sets, 3."
