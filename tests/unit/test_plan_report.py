"""A plan for people: a bar on a terminal, plain lines in a pipe, every formula with --explain."""

from __future__ import annotations

import io
import re

from rich.console import Console

from fullft_cluster.config import Config
from fullft_cluster.hardware import load_cluster
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.plan_report import BAR_WIDTH, print_plan
from fullft_cluster.planner import make_plan


def printed(plan: Plan, *, terminal: bool, explain: bool = False) -> str:
    out = io.StringIO()
    print_plan(plan, Console(file=out, force_terminal=terminal, width=100, no_color=True), explain)
    return out.getvalue()


def test_a_terminal_shows_the_parts_against_the_capacity() -> None:
    plan = make_plan(Config(), load_model("65b"), load_cluster("a100-80gb"), 100)
    bar = next(line for line in printed(plan, terminal=True).splitlines() if "█" in line)
    memory = plan.memory.gpu
    assert bar.count("█") == round(BAR_WIDTH * memory.expected_gib / memory.capacity_gib)
    assert bar.count("█") + bar.count("░") == BAR_WIDTH


def test_a_pipe_gets_plain_lines_none_of_them_cut() -> None:
    plan = make_plan(Config(), load_model("65b"), load_cluster("a100-80gb"), 100)
    text = printed(plan, terminal=False, explain=True)
    assert "\x1b" not in text and "█" not in text
    for name in plan.memory.gpu.parts:
        assert name.replace("_", " ") in text
    for sentence in plan.why:
        assert f"- {sentence}" in text.splitlines()
    for quantity in plan.quantities:
        assert f"{quantity.name} = " in text
        assert quantity.formula in text and quantity.source in text


def test_without_gpus_it_speaks_of_processes() -> None:
    text = printed(make_plan(Config(), load_model("tiny"), load_cluster("local"), 100), terminal=False)
    assert "GPU" not in text
    assert "memory a process" in text
    assert "tokens/s a process\n" in text


def test_what_is_small_is_not_shown_as_nothing() -> None:
    plan = make_plan(Config(), load_model("tiny"), load_cluster("local"), 100)
    for terminal in (True, False):
        text = printed(plan, terminal=terminal)
        assert not re.search(r"\b0\.0+ [kKMG]i?B", text), text
        assert f"checkpoint             {plan.checkpoint_gb * 1000:.1f} MB; on disk" in text
        assert f"{plan.memory.gpu.parts['parameters'] * 1024:.2f} MiB" in text
