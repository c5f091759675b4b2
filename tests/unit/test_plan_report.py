"""A plan for people: bars on a terminal, plain lines in a pipe, every formula with --explain."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from example_plan import GPU_PHASES, OPTIONS, cpu_plan, example_plan, option, peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fullft_cluster.plan import Interval, Peaks, Plan
from fullft_cluster.plan_report import bars, plain_lines, print_plan, show_plan, terminal_lines
from fullft_cluster.plan_words import figure, figure_range, gib_range, keys, printable, seconds, seconds_range


def printed(plan: Plan, *, explain: bool = False, **console: Any) -> str:
    out = io.StringIO()
    print_plan(
        plan, Console(file=out, **{"width": 80, "force_terminal": True, "color_system": "truecolor"} | console), explain
    )
    return out.getvalue()


def texts(plan: Plan, width: int = 80, *, explain: bool = False) -> list[str]:
    return ["".join(text for text, _ in line) for line in terminal_lines(plan, width, colour=False, explain=explain)]


def drawn(memory: Peaks, width: int = 80, *, colour: bool = False) -> dict[str, str]:
    """Return what stands between the brackets of each phase's bar."""
    lines = ["".join(text for text, _ in line) for line in bars(memory, width, colour=colour)]
    found = (re.match(r"(\w+(?: \w+)?) +\[(.*)[\]! ] \d", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


# --- bars


def test_each_phase_has_a_bar_whose_parts_are_as_long_as_their_share_of_the_capacity() -> None:
    memory = example_plan().memory.gpu
    found, letters = drawn(memory, 400), keys(memory)
    assert list(found) == [name.replace("_", " ") for name in GPU_PHASES]
    for phase in memory.phases:
        bar = found[phase.name.replace("_", " ")]
        for part, gib in phase.parts.items():
            assert abs(bar.count(letters[part]) - len(bar) * gib / memory.capacity_gib) <= 1, (phase.name, part)
        assert abs(bar.index("|") + 1 - len(bar) * phase.gib.high / memory.capacity_gib) <= 1, (
            "the mark of the high end"
        )
        assert bar.count("|") == 1 and bar.index("|") > bar.rindex("I")


def test_the_high_end_is_marked_however_near_it_is() -> None:
    near = drawn(peaks(GPU_PHASES, 80.0, spread=1e-6))
    assert all(bar.count("|") == 1 for bar in near.values())


def test_the_same_bars_are_drawn_with_and_without_colours() -> None:
    memory = example_plan().memory.gpu
    with_colour, without = drawn(memory, colour=True), drawn(memory)
    for name, bar in with_colour.items():
        assert len(bar) == len(without[name])
        assert set(bar) - {" "} <= set(without[name])


def test_what_goes_beyond_the_capacity_shows_where_the_capacity_is() -> None:
    one = {name: {"parameters": 60.0} for name in GPU_PHASES}
    bar = drawn(peaks(one, 100.0, spread=1.0), 120)["load"]  # high: 120 of 100 GiB
    assert abs(bar.index("]") - len(bar) * 100 / 120) <= 1
    assert abs(bar.index("|") + 1 - len(bar)) <= 1
    over = ["".join(text for text, _ in line) for line in bars(peaks(one, 50.0), 80, colour=False)]
    assert all("! 60.0 GiB" in line for line in over[:6])


def test_a_legend_gives_each_letter_its_part_and_its_gib() -> None:
    text = "\n".join(texts(example_plan()))
    assert re.search(r" A  parameters +7\.60 GiB", text)
    assert re.search(r" K  optimizer step +\(5\.60 GiB\)", text), "not in the phase of the peak: in brackets"


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"\x1b\[[\d;]*4[0-7]m", printed(example_plan())), "a background colour"
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(example_plan())
    assert not re.search(r"\x1b\[[\d;]*[34][0-7]m", text)
    assert "AAAABBBCCCC" in text, "letters tell the parts apart"


def test_the_view_is_ascii_so_that_any_terminal_shows_it() -> None:
    assert "\n".join(texts(example_plan(), explain=True)).isascii()


# --- lines


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("plan", [example_plan(), cpu_plan()], ids=["gpus", "cpu"])
def test_no_line_is_longer_than_the_terminal(plan: Plan, width: int) -> None:
    for line in texts(plan, width, explain=True):
        longest = max(map(len, line.split()), default=0)  # a link stays whole
        assert len(line) <= max(width, 6 + longest, 53), line


def test_a_terminal_of_80_columns_gets_the_table_of_options() -> None:
    lines = texts(example_plan())
    (head,) = (line for line in lines if "recomp." in line)
    assert head.split() == ["GPUs", "nodes", "micro", "ZeRO", "offload", "recomp.", "GiB", "hours", "GPU-h", "cost"]
    table = lines[lines.index(head) + 1 :]
    assert table[0].split() == ["x", "8", "1", "1", "3", "-", "yes", "130.6", "20.9", "167", "334"]
    assert OPTIONS[0].note.split()[:4] == table[1].split()[:4]
    assert ["*P", "16", "2", "1", "3", "-", "yes", "69.8", "10.6", "170", "339"] in [line.split() for line in table]
    assert ["P", "32", "4", "2", "3", "hpZ", "-", "yes", "50.1", "5.2", "166", "333"] in [
        line.split() for line in table
    ]


def test_a_narrow_terminal_gets_the_options_as_sentences() -> None:
    text = " ".join(" ".join(texts(example_plan(), 50)).split())
    assert "recomp." not in text
    assert "*P 16 GPUs (2 nodes of 8), micro-batch 1, ZeRO-3, no offload" in text
    assert OPTIONS[0].note in text


def test_fsdp_and_offload_have_their_words() -> None:
    plan = example_plan(engine="fsdp", offload="parameters", options=(option(8, 3.0, offload="parameters", cost=None),))
    lines = texts(plan)
    assert any(line.split()[1:4] == ["FSDP", "full", "shard,"] for line in lines)
    row = lines[next(index for index, line in enumerate(lines) if "recomp." in line) + 1]
    assert row.split() == ["8", "1", "1", "full", "all", "yes", "69.8", "3.0", "24.0"], (
        "no column of costs without costs"
    )


def test_time_has_intervals() -> None:
    lines = texts(example_plan())
    for line in (
        "time                10h 36m (9h 30m to 13h 06m)",
        "tokens/s a GPU      340 (275 to 381)",
        "MFU                 43.1 % (34.9 to 48.3)",
        "GPU-hours           170 (152 to 210)",
        "cost                339 (304 to 419), at 2 a GPU-hour",
    ):
        assert line in lines


def test_explain_shows_every_quantity_whole() -> None:
    for text in (
        " ".join(" ".join(texts(example_plan(), explain=True)).split()),
        "\n".join(plain_lines(example_plan(), True)),
    ):
        for quantity in example_plan().quantities:
            assert f"{quantity.name} = " in text and f"({quantity.origin})" in text
            assert quantity.formula in text and quantity.source in text
    assert "1910.02054" not in "\n".join(texts(example_plan()))


# --- a pipe


def test_a_pipe_gets_plain_lines_of_name_and_value() -> None:
    text = printed(example_plan(), force_terminal=False)
    assert text.splitlines() == plain_lines(example_plan(), explain=False)
    assert "\x1b" not in text and text.isascii()
    assert all(re.fullmatch(r"\S+( \S+)* {2,}\S.*|\S+( \S+)* \S.*", line) for line in text.splitlines())
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines() if re.search(r"\S {2,}", line))
    assert facts["memory a GPU"] == "69.8 GiB (67.0 to 72.6) of 79.3 GiB, highest in backward"
    assert facts["a GPU: optimizer step"] == "67.9 GiB (65.2 to 70.6)"
    assert facts["host: resume"] == "457.6 GiB (411.8 to 503.4)"
    assert facts["time"] == "10h 36m (9h 30m to 13h 06m)"
    assert len([line for line in text.splitlines() if line.startswith("option ")]) == len(OPTIONS)
    for sentence in example_plan().why:
        assert any(line.startswith("why ") and line.endswith(sentence) for line in text.splitlines())


def test_a_pipe_needs_no_rich() -> None:
    code = (
        "import sys; from fullft_cluster.plan import Plan; from fullft_cluster.plan_report import show_plan\n"
        "show_plan(Plan.from_json(sys.stdin.buffer.read()), explain=False)\n"
        "sys.exit(not {'rich', 'jinja2', 'torch'}.isdisjoint(sys.modules))"
    )
    env = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=example_plan().to_json(), capture_output=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines() == plain_lines(example_plan(), explain=False)


def test_a_terminal_gets_the_view(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_plan(example_plan(), explain=False)
    assert "\x1b[" in capsys.readouterr().out


def test_without_gpus_it_speaks_of_processes() -> None:
    text = "\n".join(plain_lines(cpu_plan(), explain=True))
    assert "GPU" not in text and "MFU" not in text
    assert "memory a process" in text and "tokens/s a process" in text
    assert "GPU" not in "\n".join(texts(cpu_plan()))


def test_what_is_not_known_is_said() -> None:
    text = "\n".join(texts(cpu_plan()))
    assert "not known: neither data nor max_steps is given" in text
    assert "hours are of a billion tokens" in " ".join(text.split())
    assert "free space" in text and "not checked" in text


def test_what_is_small_is_not_shown_as_nothing() -> None:
    for text in ("\n".join(plain_lines(cpu_plan(), explain=False)), "\n".join(texts(cpu_plan()))):
        assert not re.search(r"(?<![\d.])0\.0+ [kKMG]i?B|(?<![\d.])0(\.0+)?s", text), text
        assert "1.6 MB" in text and "2.05 MiB" in text


# --- names are the user's


HOSTILE = "x\x1b[2J\x07\u202e\ud800\n[bold]</b>\u2028"


def test_a_name_cannot_steer_the_terminal() -> None:
    plan = example_plan(cluster=HOSTILE, model=replace(example_plan().model, name=HOSTILE), why=(HOSTILE,))
    for text in (printed(plan, no_color=True, color_system=None), printed(plan, force_terminal=False)):
        assert "\x1b[2J" not in text and "\x07" not in text and "\u202e" not in text and "\ud800" not in text
        assert r"x\x1b[2J\x07\u202e\ud800 [bold]</b> " in text
    assert len(plain_lines(plan, False)) == len(plain_lines(example_plan(), False)) - len(example_plan().why) + 1


@settings(deadline=None)
@given(st.text())
def test_printable_text_is_printable_and_what_was_printable_stays(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    assert printable(shown) == shown
    shown.encode()


# --- words


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1,234"), (168.2, "168"), (99.96, "100"), (10.52, "10.5"), (0.951, "1.0"), (0.0312, "0.0312"), (0, "0")],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "0.0312s"), (24.07, "24.1s"), (59.96, "1m 00s"), (11400, "3h 10m")]
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_intervals() -> None:
    assert gib_range(Interval(low=58.2, expected=61.3, high=66)) == "61.3 GiB (58.2 to 66.0)"
    assert gib_range(Interval(low=0.05, expected=0.2, high=0.3)) == "0.2 GiB (51.2 MiB to 0.3)"
    assert gib_range(Interval(low=61.3, expected=61.3, high=61.3)) == "61.3 GiB"
    assert seconds_range(Interval(low=9600, expected=11400, high=14700)) == "3h 10m (2h 40m to 4h 05m)"
    assert seconds_range(Interval(low=1, expected=1, high=1)) == "1s"
    assert figure_range(Interval(low=40, expected=46, high=51.25), " %") == "46.0 % (40.0 to 51.2)"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.floats(0.01, 1e4), st.integers(20, 200), st.booleans())
def test_bars_hold_for_any_amounts(amounts: list[float], capacity: float, width: int, colour: bool) -> None:
    parts = {f"part_{index}": gib for index, gib in enumerate(amounts)}
    memory = peaks(dict.fromkeys(GPU_PHASES, parts), capacity, spread=0.3)
    lines = [Text.assemble(*line).plain for line in bars(memory, width, colour=colour)][: len(GPU_PHASES)]
    ends = {line.index("[") for line in lines}
    assert len(ends) == 1
    assert len({cell_len(line) for line in lines}) == 1
