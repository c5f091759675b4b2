"""A plan for people: bars of memory and a table of options on a terminal, plain ``name  value`` lines in a pipe.

A line is made as spans of text and style, so that rich is only needed where something is printed.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fullft_cluster.plan import Option, Peaks, Phase, Plan, Quantity
from fullft_cluster.plan_words import (
    Fact,
    count,
    decision,
    figure,
    forecast,
    gib_range,
    keys,
    noun,
    option_words,
    peak_words,
    printable,
    quantity_value,
    storage,
    verdict,
    words,
)
from fullft_cluster.units import in_gib

if TYPE_CHECKING:
    from rich.console import Console

LABEL = 20
"""Width of the names of facts."""
STYLES = (
    "white on blue", "black on cyan", "black on green", "white on magenta", "black on yellow", "white on red",
    "black on bright_blue", "black on bright_green", "black on bright_magenta", "black on bright_cyan",
    "black on white", "white on bright_black", "black on orange1", "white on dark_green", "black on light_pink1",
    "white on purple4",
)  # fmt: skip
"""Of the parts of the memory; each has its letter too."""

Line = list[tuple[str, str]]
"""Texts and their rich styles."""


def show_plan(plan: Plan, explain: bool) -> None:
    """Print a plan on stdout. Only a terminal (or FORCE_COLOR) needs rich: a pipe is spared its import."""
    if sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        from rich.console import Console

        print_plan(plan, Console(), explain)
    else:
        print("\n".join(plain_lines(plan, explain)))


def print_plan(plan: Plan, console: Console, explain: bool) -> None:
    """Print a plan: with bars and a table on a terminal, plain lines ``name  value`` where the output is piped."""
    if not console.is_terminal:
        for line in plain_lines(plan, explain):
            console.out(line, highlight=False)
        return
    from rich.text import Text

    colour = not console.no_color and console.color_system is not None
    for spans in terminal_lines(plan, console.width, colour=colour, explain=explain):
        console.print(Text.assemble(*spans), soft_wrap=True)


# --- a pipe


def plain_lines(plan: Plan, explain: bool) -> list[str]:
    """Return a plan without colours and drawings, one line for each thing that can be asked for. Needs no rich."""
    one, memory = noun(plan.gpu), plan.memory
    facts = [*decision(plan), (f"memory a {one}", peak_words(memory.gpu)), *_peaks(memory.gpu, f"a {one}")]
    facts += [("host memory a node", peak_words(memory.host)), *_peaks(memory.host, "host")]
    facts += _forecast(plan)
    for option in plan.options:
        said = verdict(option)
        facts.append(("option", option_words(option, plan) + (f" ({said})" if said else "")))
    facts += [("why", sentence) for sentence in plan.why]
    column = max(len(name) for name, _ in facts) + 1
    lines = [f"{name:<{column}} {printable(value)}" for name, value in facts]
    return lines + ([line for quantity in plan.quantities for line in _quantity(quantity)] if explain else [])


def _forecast(plan: Plan) -> list[Fact]:
    return [*forecast(plan), ("forecast from", plan.time.basis), *storage(plan)]


def _peaks(peaks: Peaks, where: str) -> Iterator[Fact]:
    """Yield each phase, then each part of the phase of the peak."""
    for phase in peaks.phases:
        yield f"{where}: {words(phase.name)}", gib_range(phase.gib)
    for part, gib in peaks.parts.items():
        yield f"peak {where}: {words(part)}", in_gib(gib, 2)


def _quantity(quantity: Quantity) -> tuple[str, str, str]:
    """Return value with unit and origin, formula and source of a quantity."""
    return (
        printable(f"{quantity.name} = {quantity_value(quantity)} ({quantity.origin})"),
        printable(f"    = {quantity.formula}"),
        printable(f"    source: {quantity.source}"),
    )


# --- a terminal


def terminal_lines(plan: Plan, width: int, *, colour: bool, explain: bool) -> Iterator[Line]:
    """Yield the lines of the view; none is longer than ``width`` characters, unless it is a single long word."""
    one = noun(plan.gpu)
    yield from _facts(decision(plan), width)
    yield []
    yield from _wrapped(f"Memory a {one}: {peak_words(plan.memory.gpu)}", width, style="bold")
    yield from bars(plan.memory.gpu, width, colour=colour)
    yield []
    yield from _wrapped(f"Host memory a node: {peak_words(plan.memory.host)}", width, style="bold")
    yield from _host(plan.memory.host, width)
    yield []
    yield from _facts(_forecast(plan), width)
    yield []
    yield from _options(plan, width)
    yield []
    for sentence in plan.why:
        yield from _wrapped(f"- {sentence}", width, hang=2)
    if explain:
        yield []
        for quantity in plan.quantities:
            head, *rest = _quantity(quantity)
            yield from _wrapped(head, width, hang=4)
            for line in rest:
                yield from _wrapped(line.strip(), width, lead=4, hang=6, style="dim")


def _wrapped(text: str, width: int, *, lead: int = 0, hang: int = 0, style: str = "") -> Iterator[Line]:
    """Yield the text in lines, the first indented by ``lead``, the others by ``hang``; links stay whole."""
    lines = textwrap.wrap(
        printable(text), max(width, hang + 20), initial_indent=" " * lead, subsequent_indent=" " * hang,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    yield from ([(line, style)] for line in lines)


def _facts(facts: Iterable[Fact], width: int) -> Iterator[Line]:
    """Yield names and values in two columns."""
    for name, value in facts:
        first, *rest = _wrapped(value or "-", max(width - LABEL, 20))
        yield [(f"{name:<{LABEL}}", "bold"), *first]
        yield from ([(" " * LABEL, ""), *line] for line in rest)


def bars(peaks: Peaks, width: int, *, colour: bool) -> Iterator[Line]:
    """Yield a bar a phase, its parts against the capacity, then the legend of the parts.

    ``[`` is nothing, ``]`` the capacity, ``|`` the high end of the forecast. Parts are told apart by colour and by the
    letter at their beginning; without colours the letter fills the part.
    """
    sizes = {phase.name: gib_range(phase.gib) for phase in peaks.phases}
    name_width = max(len(name) for name in sizes) + 2
    size_width = max(len(size) for size in sizes.values())
    cells = max(width - name_width - size_width - 3, 10)
    letters = keys(peaks)
    scale = max(peaks.capacity_gib, *(phase.gib.high for phase in peaks.phases))
    for phase in peaks.phases:
        style = "bold" if phase.name == peaks.peak else ""
        bar = _bar(phase, letters, (cells, scale, peaks.capacity_gib), colour)
        yield [
            (f"{words(phase.name):<{name_width}}", style),
            *bar,
            (f" {sizes[phase.name]:<{size_width}}".rstrip(), style),
        ]
    yield from _legend(peaks, letters, width, colour)


def _bar(phase: Phase, letters: dict[str, str], ruler: tuple[int, float, float], colour: bool) -> Line:
    """Return one bar; ``ruler`` is its cells, the GiB of all of them, and the capacity in GiB."""
    cells, scale, capacity = ruler
    bar: Line = []
    filled, total = 0, 0.0
    for part, gib in phase.parts.items():
        total += gib
        end = round(cells * min(total / scale, 1))
        letter = letters[part]
        fill = letter.ljust(end - filled) if colour else letter * (end - filled)
        if end > filled:
            bar.append((fill, STYLES[list(letters).index(part) % len(STYLES)] if colour else ""))
        filled = end
    high = max(round(cells * min(phase.gib.high / scale, 1)), min(filled + 1, cells))  # seen however near it is
    rest = ("-" * (high - filled - 1) + "|" if high > filled else "").ljust(cells - filled, ".")
    limit = round(cells * capacity / scale)
    if limit < cells and limit >= filled:
        rest = rest[: limit - filled] + "]" + rest[limit - filled + 1 :].replace(".", " ")
    over = "!" if filled > limit else "]" if limit == cells else " "
    return [("[", "dim"), *bar, (rest, "dim"), (over, "bold red" if over == "!" else "dim")]


def _legend(peaks: Peaks, letters: dict[str, str], width: int, colour: bool) -> Iterator[Line]:
    """Yield the letters of the parts with their GiB in the phase of the peak; of others, in brackets, the most."""
    most = {part: max(phase.parts.get(part, 0.0) for phase in peaks.phases) for part in letters}
    sizes = {
        part: in_gib(peaks.parts[part], 2) if part in peaks.parts else f"({in_gib(most[part], 2)})" for part in most
    }
    name_width, size_width = max(map(len, letters), default=0), max(map(len, sizes.values()), default=0)
    columns = 2 if 2 * (name_width + size_width + 8) <= width else 1
    rows = -(-len(letters) // columns)
    cells: list[Line] = []
    for index, (part, letter) in enumerate(letters.items()):
        style = STYLES[index % len(STYLES)] if colour else "bold"
        size = sizes[part] + ("" if sizes[part].endswith(")") else " ")
        cells.append([("  ", ""), (f" {letter} ", style), (f" {words(part):<{name_width}} {size:>{size_width}}", "")])
    for row in range(rows):
        yield [span for cell in cells[row::rows] for span in cell]
    if set(letters) - set(peaks.parts):
        yield from _wrapped(
            f"GiB in {words(peaks.peak)}; in brackets the most in another phase", width, lead=2, style="dim"
        )


def _host(peaks: Peaks, width: int) -> Iterator[Line]:
    """Yield the phases and the parts of the highest in two lines or so."""
    phases = ", ".join(f"{words(phase.name)} {in_gib(phase.gib.expected)}" for phase in peaks.phases)
    yield from _wrapped(phases, width, lead=2, hang=2)
    parts = ", ".join(f"{words(part)} {in_gib(gib)}" for part, gib in peaks.parts.items())
    yield from _wrapped(f"in {words(peaks.peak)}: {parts}", width, lead=2, hang=2)


def _options(plan: Plan, width: int) -> Iterator[Line]:
    """Yield the options as a table; as sentences where the terminal is too narrow for it."""
    one = noun(plan.gpu)
    unknown = "" if plan.time.hours else "; hours are of a billion tokens"
    legend = f"* chosen, P Pareto front of {count(2, one)[2:]}, hours and {one}-hours, x does not fit{unknown}"
    yield from _wrapped(f"Options ({legend})", width, hang=2, style="bold")
    rows = [_columns(plan), *(_row(option, plan) for option in plan.options)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    gap = next((gap for gap in (2, 1) if sum(widths) + gap * (len(widths) - 1) <= width), None)
    if gap is not None:
        yield [((" " * gap).join(c.rjust(w) for c, w in zip(rows[0], widths, strict=True)), "underline")]
    for option, row in zip(plan.options, rows[1:], strict=True):
        style = "bold" if option.chosen else "" if option.fits else "dim"
        if gap is None:
            yield from _wrapped(f"{row[0]} {option_words(option, plan)}", width, hang=3, style=style)
        else:
            yield [((" " * gap).join(c.rjust(w) for c, w in zip(row, widths, strict=True)), style)]
        if option.note:
            yield from _wrapped(option.note, width, lead=5, hang=5, style=style)


def _columns(plan: Plan) -> list[str]:
    one = noun(plan.gpu)
    names = ["", count(2, one)[2:], "nodes", "micro", "ZeRO" if plan.engine == "deepspeed" else "FSDP"]
    names += ["offload", "recomp.", "GiB", "hours", f"{one}-h" if one == "GPU" else "proc.-h"]
    return names + (["cost"] if _costs(plan) else [])


def _row(option: Option, plan: Plan) -> list[str]:
    mark = ("*" if option.chosen else "") + ("P" if option.pareto else "") + ("" if option.fits else "x")
    stage = str(option.zero_stage) if plan.engine == "deepspeed" else "full"
    row = [
        mark,
        str(option.gpus),
        str(option.nodes),
        str(option.micro_batch_size),
        stage + (" hpZ" if option.hpz else ""),
    ]
    row += [{"none": "-", "optimizer": "optim.", "parameters": "all"}[option.offload]]
    row += ["yes" if option.activation_checkpointing else "no", in_gib(option.gpu_gib).removesuffix(" GiB")]
    row += [figure(option.hours), figure(option.gpu_hours)]
    return row + (["-" if option.cost is None else figure(option.cost)] if _costs(plan) else [])


def _costs(plan: Plan) -> bool:
    return any(option.cost is not None for option in plan.options)
