"""A plan for people: a table, the memory as a bar on a terminal, the why, and with --explain every formula."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Plan, Quantity
from fullft_cluster.planner.layout import count, noun
from fullft_cluster.units import duration, in_gb, in_gib

BAR_WIDTH = 60
_COLOURS = ("blue", "cyan", "green", "magenta", "yellow", "bright_blue", "bright_green", "red", "bright_magenta")


def print_plan(plan: Plan, console: Console, explain: bool) -> None:
    """Print a plan: rich on a terminal, plain lines ``name  value`` where the output is piped."""
    for label, value in _facts(plan):
        console.print(Text(f"{label:<22} {value}"), soft_wrap=True)
    console.print()
    _print_memory(plan, console)
    console.print()
    for sentence in plan.why:
        console.print(Text(f"- {sentence}"), soft_wrap=not console.is_terminal)
    if explain:
        console.print()
        _print_quantities(plan.quantities, console)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    """Return what the plan decides, as labels and values."""
    model = plan.model
    one = noun(plan.gpu)
    many = count(2, one).removeprefix("2 ")
    split = f"{plan.micro_batch_size} x {plan.gradient_accumulation_steps} x {plan.gpus}"
    per_gpu = f"{plan.time.tokens_per_second_per_gpu:.0f} tokens/s a {one}"
    steps = [f"{duration(plan.time.step_seconds)} a step", per_gpu]
    if plan.time.hours is not None:
        steps.append(f"{plan.time.total_steps} steps in {duration(plan.time.hours * 3600)}")
    recomputed = "recomputed" if plan.activation_checkpointing else "kept"
    offload = "in host memory" if plan.offload == "optimizer" else "on the GPU" if plan.gpu != CPU else "in memory"
    return [
        ("model", f"{model.name} ({model.model_type}, {model.parameters:,} parameters)"),
        (many, f"{plan.gpus} x {plan.gpu}: {plan.nodes} x {plan.gpus_per_node} (cluster {plan.cluster})"),
        ("global batch", f"{plan.global_batch_size} sequences = {split} (micro-batch x accumulation x {many})"),
        ("sequence length", f"{plan.seq_len}"),
        ("learning rate", f"{plan.learning_rate:g}"),
        ("epochs", f"{plan.epochs}" + (f", at most {plan.max_steps} steps" if plan.max_steps else "")),
        ("precision", f"{plan.precision}, ZeRO-{plan.zero_stage}, activations {recomputed}, optimizer {offload}"),
        ("speed (estimate)", ", ".join(steps)),
        ("host memory a node", _of(plan.memory.host_gib_per_node, plan.memory.host_capacity_gib_per_node)),
        ("checkpoint", f"{in_gb(plan.checkpoint_gb)}; on disk at most {in_gb(plan.disk_gb)} with the export"),
        ("warning before end", f"{plan.signal_lead_seconds} s"),
    ]


def _of(value: float, capacity: float) -> str:
    return f"{in_gib(value).removesuffix(' GiB')} of {in_gib(capacity)}"


def _print_memory(plan: Plan, console: Console) -> None:
    """Print the parts of one GPU's peak: bars against the capacity on a terminal, else a list."""
    memory = plan.memory.gpu
    total = f"memory a {noun(plan.gpu)}: {_of(memory.expected_gib, memory.capacity_gib)}"
    if not console.is_terminal:
        console.print(Text(total), soft_wrap=True)
        for name, value in memory.parts.items():
            console.print(Text(f"  {_words(name):<24} {in_gib(value, 2):>12}"), soft_wrap=True)
        return
    console.print(Text(total, style="bold"))
    console.print(_stacked(plan))
    table = Table(box=None, pad_edge=False, show_header=False)
    for (name, value), colour in zip(memory.parts.items(), _cycle(len(memory.parts)), strict=True):
        table.add_row(Text("■", style=colour), _words(name), Text(in_gib(value, 2), justify="right"))
    console.print(table)


def _stacked(plan: Plan) -> Text:
    """Return one bar whose length is the capacity, filled by the parts in their colours."""
    memory, bar, filled, sum_gib = plan.memory.gpu, Text(), 0, 0.0
    for value, colour in zip(memory.parts.values(), _cycle(len(memory.parts)), strict=True):
        sum_gib += value
        end = round(BAR_WIDTH * min(sum_gib / memory.capacity_gib, 1))
        bar.append("█" * (end - filled), style=colour)
        filled = end
    bar.append("░" * (BAR_WIDTH - filled), style="dim")
    return bar.append(f" {memory.capacity_gib:.1f} GiB")


def _cycle(length: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(length)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _print_quantities(quantities: tuple[Quantity, ...], console: Console) -> None:
    """Print each quantity with value, unit, formula, source and origin."""
    for quantity in quantities:
        value = quantity.value if isinstance(quantity.value, str) else f"{quantity.value:,.6g}"
        if isinstance(quantity.value, int):
            value = f"{quantity.value:,}"
        unit = "" if quantity.unit == "1" else f" {quantity.unit}"
        console.print(Text(f"{quantity.name} = {value}{unit} ({quantity.origin})"), soft_wrap=True)
        console.print(Text(f"    = {quantity.formula}"), soft_wrap=not console.is_terminal)
        console.print(Text(f"    source: {quantity.source}"), soft_wrap=not console.is_terminal)
