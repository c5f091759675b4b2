"""A plan in words: what the terminal's view, the plain lines of a pipe and the HTML page all say. Plain strings."""

from __future__ import annotations

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Interval, Option, Peaks, Plan, Quantity
from fullft_cluster.units import duration, in_gb, in_gib

Fact = tuple[str, str]
"""A name and its value, both as people read them."""

KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""A letter for each part of the memory, so that a bar can be read without its colours."""


def noun(gpu: str) -> str:
    """Return what a worker computes on: a GPU, or a process where there is none."""
    return "process" if gpu == CPU else "GPU"


def count(number: int, what: str) -> str:
    """Return ``1 node``, ``3 nodes`` or ``2 processes``."""
    plural = "es" if what.endswith("s") else "s"
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}{plural}"


def printable(text: str) -> str:
    """Return the text on one line and without what a terminal or a browser would act on: a name is the user's text.

    Control characters, direction marks and lone surrogates are shown as Python writes them, ``\\x1b``.
    """
    return "".join(
        char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1] for char in text
    )  # fmt: skip


def words(name: str) -> str:
    """Return the name of a part or phase as words."""
    return name.replace("_", " ")


def keys(peaks: Peaks) -> dict[str, str]:
    """Return a letter for each part that any phase has: those of the peak first, then as they appear."""
    parts = dict.fromkeys([*peaks.parts, *(part for phase in peaks.phases for part in phase.parts)])
    return {part: KEYS[index % len(KEYS)] for index, part in enumerate(parts)}


# --- numbers


def figure(value: float) -> str:
    """Return a number with about three digits: ``1,234``, ``168``, ``10.5``, ``5.2``, ``0.0312``."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 0.95 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Return ``1h 02m``, ``3m 04s``, ``24.1s`` or ``0.031s``."""
    return duration(value) if value >= 59.95 else f"{value:.3g}s"


def gib_range(gib: Interval) -> str:
    """Return ``61.3 GiB (58.2 to 66.0)``; the ends with their own units where those differ."""
    middle = in_gib(gib.expected)
    unit = middle[middle.index(" ") :]
    return _range(middle, in_gib(gib.low).removesuffix(unit), in_gib(gib.high).removesuffix(unit))


def seconds_range(value: Interval) -> str:
    """Return ``3h 10m (2h 40m to 4h 05m)``."""
    return _range(seconds(value.expected), seconds(value.low), seconds(value.high))


def figure_range(value: Interval, unit: str = "") -> str:
    """Return ``168 (139 to 209)``, the unit behind the first number."""
    return _range(f"{figure(value.expected)}{unit}", figure(value.low), figure(value.high))


def _range(middle: str, low: str, high: str) -> str:
    """Return the interval in words; the middle alone where it has no width."""
    return middle if middle.partition(" ")[0] == low == high or middle == low == high else f"{middle} ({low} to {high})"


def quantity_value(quantity: Quantity) -> str:
    """Return the value of a quantity with its unit."""
    value = quantity.value
    text = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return text if quantity.unit in ("", "1") else f"{text} {quantity.unit}"


# --- what a plan decides


def sharding(plan: Plan | Option, engine: str) -> str:
    """Return what is sharded over the GPUs, ``ZeRO-3 + hpZ``."""
    name = f"ZeRO-{plan.zero_stage}" if engine == "deepspeed" else "FSDP full shard"
    return f"{name} + hpZ" if plan.hpz else name


def layout(plan: Plan | Option) -> str:
    """Return ``2 nodes of 8``."""
    return f"{count(plan.nodes, 'node')} of {plan.gpus_per_node}"


def decision(plan: Plan) -> list[Fact]:
    """Return what the plan decides: what is learnt, and how it is computed."""
    model, many = plan.model, count(2, noun(plan.gpu)).removeprefix("2 ")
    split = f"{plan.micro_batch_size} x {plan.gradient_accumulation_steps} x {plan.gpus}"
    place = "on the GPU" if plan.gpu != CPU else "in memory"
    where = {
        "none": f"everything {place}",
        "optimizer": "optimizer states in host memory",
        "parameters": "optimizer states and parameters in host memory",
    }
    recomputed = "recomputed" if plan.activation_checkpointing else "kept"
    return [
        ("model", f"{model.name} ({model.model_type}, {model.parameters:,} parameters)"),
        (many, f"{plan.gpus} x {plan.gpu}: {layout(plan)} (cluster {plan.cluster})"),
        ("global batch", f"{plan.global_batch_size} sequences = {split} (micro-batch x accumulation x {many})"),
        ("sequence length", f"{plan.seq_len:,}"),
        ("learning rate", f"{plan.learning_rate:g}"),
        ("epochs", f"{plan.epochs}" + (f", at most {plan.max_steps:,} steps" if plan.max_steps else "")),
        ("precision", plan.precision),
        ("sharding", f"{sharding(plan, plan.engine)}, {where[plan.offload]}"),
        ("activations", recomputed),
        ("kernels", kernels(plan)),
    ]


def kernels(plan: Plan) -> str:
    """Return ``flash_attention_2, chunked loss``, and what else computes the layers."""
    extra = [("Liger's kernels", plan.liger_kernel), ("torch.compile", plan.torch_compile)]
    return ", ".join([plan.attn_implementation, f"{plan.loss} loss", *(name for name, on in extra if on)])


def forecast(plan: Plan) -> list[Fact]:
    """Return how long it takes, with the intervals."""
    time, one = plan.time, noun(plan.gpu)
    parts = ", ".join(f"{words(name)} {seconds(value)}" for name, value in time.step_parts.items())
    unknown = f"not known: {time.tokens_source.removeprefix('not known: ')}"
    facts = [("time", unknown if time.hours is None else seconds_range(time.hours.times(3600)))]
    if time.tokens is not None and time.total_steps is not None:
        facts.append(("tokens", f"{time.tokens:,} in {count(time.total_steps, 'step')} ({time.tokens_source})"))
    facts.append(("a step", f"{seconds_range(time.step_seconds)}" + (f": {parts}" if parts else "")))
    facts.append((f"tokens/s a {one}", figure_range(time.tokens_per_second_per_gpu)))
    if time.mfu is not None:
        facts.append(("MFU", figure_range(time.mfu.times(100), " %")))
    if time.gpu_hours is not None:
        facts.append((f"{one}-hours", figure_range(time.gpu_hours)))
        if time.cost is not None:
            price = time.cost.expected / time.gpu_hours.expected if time.gpu_hours.expected else 0.0
            facts.append(("cost", f"{figure_range(time.cost)}, at {price:.4g} a {one}-hour"))
    return facts


def storage(plan: Plan) -> list[Fact]:
    """Return what is written to disk, and how early the scheduler has to warn."""
    free = "free space not checked" if plan.disk_free_gb is None else f"of {in_gb(plan.disk_free_gb)} free"
    written = seconds(plan.time.checkpoint_seconds)
    return [
        ("checkpoint", f"{in_gb(plan.checkpoint_gb)}, written in {written}"),
        ("disk", f"at most {in_gb(plan.disk_gb)}, the export of {in_gb(plan.export_gb)} included ({free})"),
        ("warning before end", f"{plan.signal_lead_seconds} s"),
    ]


def peak_words(peaks: Peaks) -> str:
    """Return ``61.3 GiB (58.2 to 66.0) of 79.3 GiB, at the backward phase``."""
    whole = Interval(low=peaks.low_gib, expected=peaks.expected_gib, high=peaks.high_gib)
    return f"{gib_range(whole)} of {in_gib(peaks.capacity_gib)}, highest in {words(peaks.peak)}"


# --- options


def option_words(option: Option, plan: Plan) -> str:
    """Return one option as a sentence without a verb, for lists and tooltips."""
    one = noun(plan.gpu)
    offload = {
        "none": "no offload",
        "optimizer": "optimizer offloaded",
        "parameters": "optimizer and parameters offloaded",
    }
    parts = [
        f"{count(option.gpus, one)} ({layout(option)})",
        f"micro-batch {option.micro_batch_size}",
        sharding(option, plan.engine),
        offload[option.offload],
        "recomputing" if option.activation_checkpointing else "keeping activations",
        in_gib(option.gpu_gib),
        f"{figure(option.hours)} hours" + ("" if plan.time.hours else " a billion tokens"),
        f"{figure(option.gpu_hours)} {one}-hours",
    ]
    if option.cost is not None:
        parts.append(f"cost {figure(option.cost)}")
    return ", ".join(parts)


def verdict(option: Option) -> str:
    """Return what an option is: chosen, on the front, does not fit and why; empty where it is none of these."""
    said = [text for text, holds in (("chosen", option.chosen), ("Pareto front", option.pareto)) if holds]
    if not option.fits:
        said.append(f"does not fit: {option.note}" if option.note else "does not fit")
    elif option.note:
        said.append(option.note)
    return "; ".join(said)
