"""A plan as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fullft_cluster import __version__
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Option, Peaks, Plan
from fullft_cluster.plan_chart import memory_bars, memory_legend, step_bars, step_legend
from fullft_cluster.plan_plot import pareto_plot
from fullft_cluster.plan_words import (
    count,
    decision,
    figure,
    figure_range,
    forecast,
    gib_range,
    layout,
    noun,
    peak_words,
    printable,
    quantity_value,
    seconds,
    seconds_range,
    sharding,
    storage,
    verdict,
    words,
)
from fullft_cluster.resources import share
from fullft_cluster.units import in_gb, in_gib

if TYPE_CHECKING:
    import jinja2

_LINK = re.compile(r"https?://[^\s<>\"'`]+")


def plan_page(plan: Plan) -> str:
    """Return the page of a plan. Every text is escaped: names of models and clusters are the user's."""
    one = noun(plan.gpu)
    machines = f"{plan.gpus} x {plan.gpu}" if plan.gpu != CPU else count(plan.gpus, one)
    return (
        environment()
        .get_template("plan.html.j2")
        .render(
            one=one,
            title=f"{plan.model.name} on {machines}",
            subtitle=f"{layout(plan)}, cluster {plan.cluster}, {sharding(plan, plan.engine)}, {plan.precision}",
            tiles=tiles(plan),
            memories=[
                memory(plan.memory.gpu, f"Memory of one {one}", f"a {one}"),
                memory(plan.memory.host, "Host memory of one node", "a node"),
            ],
            allocated=in_gib(plan.memory.allocated_gib) if plan.gpu != CPU else "",
            plot=pareto_plot(plan),
            options=options(plan),
            columns=columns(plan),
            step={"bars": step_bars(plan), "parts": step_legend(plan)} if plan.time.step_parts else None,
            decision=decision(plan),
            forecast=forecast(plan),
            basis=link_pieces(plan.time.basis),
            storage=storage(plan),
            why=plan.why,
            quantities=[(q, quantity_value(q), link_pieces(q.source)) for q in plan.quantities],
            version=__version__,
        )
    )


def environment() -> jinja2.Environment:
    """Return the Jinja environment of pages: escaping, strict about names, and control characters made visible."""
    import jinja2  # here, because a plan on a terminal does not need it

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(share("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def link_pieces(text: str) -> list[tuple[str, str]]:
    """Return the text cut at its links: pieces and their addresses, an empty one for what is no link.

    Only http and https; a full stop or bracket that ends the sentence does not belong to the link.
    """
    pieces, end = [], 0
    for match in _LINK.finditer(text):
        link = match[0].rstrip(".,;:!?")
        while link.endswith(")") and link.count(")") > link.count("("):
            link = link[:-1].rstrip(".,;:!?")
        pieces += [(text[end : match.start()], ""), (link, link)]
        end = match.start() + len(link)
    return [piece for piece in [*pieces, (text[end:], "")] if piece[0]]


def tiles(plan: Plan) -> list[dict[str, str]]:
    """Return the figures at the head of the page: value, what it is, and its interval or remark."""
    one, gpu, time = noun(plan.gpu), plan.memory.gpu, plan.time
    peak = in_gib(gpu.expected_gib)
    made = [
        _tile(count(plan.gpus, one), plan.gpu, layout(plan)),
        _tile(peak, f"of {in_gib(gpu.capacity_gib)} a {one}", f"highest in {words(gpu.peak)}"),
    ]
    if time.hours is None:
        made.append(_tile(seconds(time.step_seconds.expected), "a step", "the run's length is not known"))
    else:
        made.append(_tile(*_split(seconds_range(time.hours.times(3600)), "for the whole run")))
    if time.gpu_hours is not None:
        made.append(_tile(*_split(figure_range(time.gpu_hours), f"{one}-hours")))
    if time.cost is not None:
        made.append(_tile(*_split(figure_range(time.cost), "cost")))
    return [*made, _tile(in_gb(plan.disk_gb), "on disk at most", f"a checkpoint is {in_gb(plan.checkpoint_gb)}")]


def _tile(value: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "label": label, "note": note}


def _split(text: str, label: str) -> tuple[str, str, str]:
    """Return a range in words as value and interval, the label between them."""
    value, _, interval = text.partition(" (")
    return value, label, interval.removesuffix(")")


def memory(peaks: Peaks, title: str, each: str) -> dict[str, Any]:
    """Return what the page shows of the memory of a GPU or a node."""
    return {
        "title": title,
        "summary": peak_words(peaks),
        "room": room(peaks, each),
        "tight": peaks.high_gib > peaks.capacity_gib,
        "bars": memory_bars(peaks),
        "parts": memory_legend(peaks),
        "phases": [
            {"name": words(phase.name), "whole": gib_range(phase.gib), "peak": phase.name == peaks.peak}
            for phase in peaks.phases
        ],
    }


def room(peaks: Peaks, each: str) -> str:
    """Return what is left at the peak, and whether the high end of the forecast fits as well."""
    left, most = peaks.capacity_gib - peaks.expected_gib, peaks.capacity_gib - peaks.high_gib
    if left < 0:
        return f"Does not fit: {in_gib(-left)} {each} are lacking."
    if most < 0:
        return f"Tight: {in_gib(left)} {each} are left, at the high end of the forecast {in_gib(-most)} are lacking."
    return f"{in_gib(left)} {each} are left; at the high end of the forecast {in_gib(most)}."


def columns(plan: Plan) -> list[tuple[str, bool]]:
    """Return the names of the columns of the table of options, and whether they are numbers."""
    one, many = noun(plan.gpu), count(2, noun(plan.gpu)).removeprefix("2 ")
    texts = ["nodes", "micro-batch", "sharding", "offload", "activations"]
    numbers = [f"memory a {one}", "a step", "hours", f"{one}-hours", *(["cost"] if _costs(plan) else [])]
    named = [("no.", True), (many, True), *((name, False) for name in texts), *((name, True) for name in numbers)]
    return [*named, ("verdict", False)]


def _costs(plan: Plan) -> bool:
    return any(option.cost is not None for option in plan.options)


def options(plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of the table of options, numbered as the points of the plot."""
    return [
        {
            "kind": "chosen" if option.chosen else "fits" if option.fits else "lacks",
            "cells": [str(number), *_cells(option, plan), verdict(replace(option, note="")) or "fits"],
            "note": option.note,
        }
        for number, option in enumerate(plan.options, 1)
    ]


def _cells(option: Option, plan: Plan) -> list[str]:
    cost = "-" if option.cost is None else figure(option.cost)
    return [
        f"{option.gpus:,}",
        f"{option.nodes} x {option.gpus_per_node}",
        str(option.micro_batch_size),
        sharding(option, plan.engine),
        {"none": "none", "optimizer": "optimizer", "parameters": "optimizer, parameters"}[option.offload],
        "recomputed" if option.activation_checkpointing else "kept",
        in_gib(option.gpu_gib),
        seconds(option.step_seconds),
        figure(option.hours),
        figure(option.gpu_hours),
        *([cost] if _costs(plan) else []),
    ]
