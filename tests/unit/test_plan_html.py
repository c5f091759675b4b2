"""The page of a plan: byte for byte, well-formed, nothing loaded from elsewhere, and hostile names change nothing.

Write the golden file anew with `FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest tests/unit/test_plan_html.py`, and look at it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from example_plan import GPU_PHASES, OPTIONS, TIME, cpu_plan, example_plan, option, peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fullft_cluster.plan import Plan
from fullft_cluster.plan_chart import BAR_LEFT, BAR_RIGHT, COLOURS, memory_bars, memory_legend, step_legend, ticks
from fullft_cluster.plan_html import environment, link_pieces, plan_page, room, tiles
from fullft_cluster.plan_plot import RADIUS, pareto_plot, side_by_side
from fullft_cluster.plan_words import printable

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.html"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The tags of a page in their order, its attributes and its text; fails where a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


PLANS = {
    "gpus": example_plan(),
    "cpu": cpu_plan(),
    "fsdp": example_plan(engine="fsdp", time=replace(TIME, step_parts={}), options=OPTIONS[2:3], quantities=()),
}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


# --- the page


def test_golden() -> None:
    page = plan_page(example_plan())
    if os.environ.get("FULLFT_CLUSTER_UPDATE_GOLDEN"):
        GOLDEN.write_text(page)
    assert page == GOLDEN.read_text(), f"if this is meant: FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest {__file__}"


def test_every_tag_is_closed_and_tables_are_rectangular(plan: Plan) -> None:
    page = plan_page(plan)
    Page(page)
    assert page.startswith("<!DOCTYPE html>\n")
    for table in re.findall(r"<table.*?</table>", page, re.S):
        spans = [int(n) for n in re.findall(r'colspan="(\d+)"', table)]
        widths = {
            len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr.*?</tr>", table, re.S) if "colspan" not in row
        }
        assert len(widths) == 1
        assert all(span + 1 == min(widths) for span in spans)


def test_nothing_is_loaded_or_run(plan: Plan) -> None:
    html = plan_page(plan)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "style/"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "style", "xlink:href") or a[1].startswith("on")]
    assert {tag for tag, name, _ in page.attributes if name == "href"} <= {"a"}
    assert all(value.startswith("https://") for _, name, value in page.attributes if name == "href")
    assert "url(" not in html and "@import" not in html
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_shows_what_the_plan_says() -> None:
    page = Page(plan_page(example_plan()))
    for said in (
        "65b on 16 x a100-80gb",
        "69.8 GiB (67.0 to 72.6) of 79.3 GiB, highest in backward.",
        "9.5 GiB a GPU are left; at the high end of the forecast 6.7 GiB.",
        "10h 36m (9h 30m to 13h 06m)",
        "43.1 % (34.9 to 48.3)",
        "capacity 79.3 GiB",
        *example_plan().why,
        *(one.note for one in OPTIONS),
        "chosen; Pareto front",
        *(text for one in example_plan().quantities for text in (one.name, one.formula, one.source)),
    ):
        assert said in page.text, said
    links = [value for _, name, value in page.attributes if name == "href"]
    assert links == ["https://arxiv.org/abs/1910.02054", "https://arxiv.org/abs/2205.05198"]


def test_every_picture_has_a_name_and_every_part_a_tooltip() -> None:
    html = plan_page(example_plan())
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'aria-hidden="true"' in svg or re.search(r'role="img" aria-label="[^"]+"', svg)
    parts = sum(len(phase.parts) for p in (example_plan().memory.gpu, example_plan().memory.host) for phase in p.phases)
    assert len(re.findall(r"<title>[A-Z] [a-z ]+: [\d.]+ [GM]iB in ", html)) == parts
    assert len(re.findall(r"<title>\d: ", html)) == len(OPTIONS)


def test_light_dark_and_print_have_their_styles() -> None:
    html = plan_page(example_plan())
    light, _, dark = html.partition("@media screen and (prefers-color-scheme: dark)")
    assert "@media print" in dark
    for name in set(re.findall(r"var\((--[\w]+|--on-accent)\)", html)):
        assert f"{name}:" in light, f"{name} has no value in the light style"


def test_the_style_sheet_has_every_colour_and_each_letter_can_be_read_on_it() -> None:
    light, _, rest = plan_page(example_plan()).partition("@media screen and (prefers-color-scheme: dark)")
    for style in (light, light + rest):
        values = dict(re.findall(r"--(\w+): #(\w+);", style))  # the later one wins
        for index in range(COLOURS):
            assert f".c{index} {{ fill: var(--c{index}); }}" in rest
            assert f"svg .k{index} {{ fill: var(--k{index}); }}" in rest
            assert contrast(values[f"c{index}"], values[f"k{index}"]) >= 4.5, index  # WCAG 2.2, 1.4.3
        for text in ("ink", "faint", "accent", "warn"):
            assert contrast(values[text], values["paper"]) >= 4.5, text


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    lights = sorted(luminance(colour * 2 if len(colour) == 3 else colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_without_gpus_it_speaks_of_processes() -> None:
    text = Page(plan_page(cpu_plan())).text
    text = text[text.index("65b on 2 processes") :]
    assert "GPU" not in text.replace("PyTorch", "") and "cuda" not in text
    assert "Memory of one process" in text
    assert "not known: neither data nor max_steps is given" in text


def test_jinja_is_imported_only_when_a_page_is_made() -> None:
    code = "import sys, fullft_cluster.plan_html; sys.exit('jinja2' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_undefined_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ nothing }}").render()


# --- names are the user's

BASE = Page(plan_page(example_plan()))


def with_name(name: str) -> Plan:
    """Return the plan with this text wherever a user's text may come to stand."""
    plan = example_plan()
    return replace(
        plan, cluster=name, gpu=name, model=replace(plan.model, name=name, model_type=name), why=(name, *plan.why[1:]),
        options=(replace(OPTIONS[0], note=name or "-"), *OPTIONS[1:]), time=replace(TIME, tokens_source=name),
        quantities=(replace(plan.quantities[0], name=name, value=name, formula=name), *plan.quantities[1:]),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.text("<>&\"'{}%/=- scriptonload\x00\x1b\ud800\u202e\n")))
def test_a_name_is_text_whatever_it_says(name: str) -> None:
    html = plan_page(with_name(name))
    page = Page(html)
    assert page.tags == BASE.tags
    assert len(page.attributes) == len(BASE.attributes)
    assert " ".join(printable(name).split()) in page.text
    html.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)


@pytest.mark.parametrize(
    "name",
    [
        "</title><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7 * 7 }}{% raw %}",
        "</style><style>*{background:url(https://example.org)}",
        "&lt;b&gt;",
    ],
)
def test_hostile_names_are_escaped(name: str) -> None:
    page = Page(plan_page(with_name(name)))
    assert page.tags == BASE.tags
    assert f"{name} on 16 x {name}" in page.text


def test_only_http_links_become_links() -> None:
    assert link_pieces("javascript:alert(1) file:///etc/passwd data:text/html,x") == [
        ("javascript:alert(1) file:///etc/passwd data:text/html,x", "")
    ]
    assert [link for _, link in link_pieces("A (https://x.org/a_(b)), https://y.org/c.") if link] == [
        "https://x.org/a_(b)",
        "https://y.org/c",
    ]


@settings(deadline=None)
@given(st.text(st.sampled_from("https://x.y ()<>\"'.,;:&")))
def test_links_lose_no_text(text: str) -> None:
    pieces = link_pieces(text)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(link in ("", piece) for piece, link in pieces)
    assert all(re.match(r"https?://[^\s<>\"']*$", link) for _, link in pieces if link)


# --- geometry


def test_segments_lie_side_by_side_on_the_scale_of_the_capacity() -> None:
    memory = example_plan().memory.gpu
    chart = memory_bars(memory)
    assert chart.limit is not None and chart.limit.at == BAR_RIGHT
    for row, phase in zip(chart.rows, memory.phases, strict=True):
        end = BAR_LEFT
        for segment, gib in zip(row.segments, phase.parts.values(), strict=True):
            assert segment.x == pytest.approx(end, abs=0.11)
            assert segment.width == pytest.approx((BAR_RIGHT - BAR_LEFT) * gib / memory.capacity_gib, abs=0.06)
            end = segment.x + segment.width
        assert row.low_x < end < row.high_x
        assert row.strong == (phase.name == memory.peak)


def test_what_goes_beyond_the_capacity_keeps_within_the_picture() -> None:
    over = peaks({name: {"parameters": 90.0} for name in GPU_PHASES}, 80.0, spread=0.2)
    chart = memory_bars(over)
    assert chart.limit is not None
    assert chart.limit.at == pytest.approx(BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * 80 / 108, abs=0.1)
    assert all(row.high_x <= BAR_RIGHT + 0.1 for row in chart.rows)
    assert room(over, "a GPU") == "Does not fit: 10.0 GiB a GPU are lacking."


def test_the_same_part_has_the_same_colour_and_letter_everywhere() -> None:
    memory = example_plan().memory.gpu
    legend = {part.key: part.colour for part in memory_legend(memory)}
    assert len(legend) == len({part for phase in memory.phases for part in phase.parts})
    for row in memory_bars(memory).rows:
        assert all(legend[segment.key] == segment.colour for segment in row.segments)
    step = next(part for part in memory_legend(memory) if part.label == "optimizer step")
    assert step.values == ("-", "-", "-", "5.60", "-", "-")


def test_a_tight_plan_is_said_to_be_tight() -> None:
    tight = peaks({name: {"parameters": 75.0} for name in GPU_PHASES}, 80.0, spread=0.1)
    assert room(tight, "a GPU") == "Tight: 5.0 GiB a GPU are left, at the high end of the forecast 2.5 GiB are lacking."
    memory = replace(example_plan().memory, gpu=tight)
    assert 'class="tight"' in plan_page(example_plan(memory=memory))
    assert 'class="tight"' not in plan_page(example_plan())


def test_the_parts_of_a_step_have_their_share() -> None:
    assert [(part.label, *part.values) for part in step_legend(example_plan())] == [
        ("compute", "20.9s", "87 %"),
        ("communication", "2.4s", "10 %"),
        ("optimizer", "0.8s", "3 %"),
    ]
    rare = replace(TIME, step_parts={"compute": 20.0, "optimizer": 0.05, "nothing": 0.0})
    assert [part.values[1] for part in step_legend(example_plan(time=rare))] == ["100 %", "under 1 %", "0 %"]


def test_tiles_leave_out_what_is_not_known() -> None:
    assert [(tile["value"], tile["note"]) for tile in tiles(example_plan())][2:5] == [
        ("10h 36m", "9h 30m to 13h 06m"),
        ("170", "152 to 210"),
        ("339", "304 to 419"),
    ]
    assert [tile["label"] for tile in tiles(cpu_plan())] == ["cpu", "of 7.5 GiB a process", "a step", "on disk at most"]


@settings(deadline=None)
@given(st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_within(most: float) -> None:
    marks = ticks(most)
    assert 2 <= len(marks) <= 7
    assert marks[0] == 0 and marks[-1] <= most * (1 + 1e-6)
    step = marks[1]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_ticks_of_nothing() -> None:
    assert ticks(0) == ticks(5e-324) == ticks(math.inf) == ticks(math.nan) == [0.0]


def test_the_plot_has_a_logarithmic_axis_of_gpus_and_a_linear_one_of_hours() -> None:
    plot = pareto_plot(example_plan())
    assert plot is not None
    at = {point.number: point for point in plot.points}
    assert at[3].x - at[2].x == pytest.approx(at[5].x - at[3].x), "8 to 16 GPUs is as far as 16 to 32"
    per_hour = (at[5].y - at[2].y) / (31.4 - 5.8)
    assert at[4].y == pytest.approx(at[2].y + (31.4 - 15.9) * per_hour, abs=0.2)
    assert [point.kind for point in plot.points] == ["lacks", "front", "chosen", "other", "other", "front"]
    assert plot.front.split() == [f"{at[number].x},{at[number].y}" for number in (2, 3, 6)]
    assert [tick.text for tick in plot.x_ticks] == ["8", "16", "32"]
    assert [point.label for point in plot.points if point.label] == ["251 GPU-h", "170 GPU-h", "166 GPU-h"]


def test_one_option_is_no_plot() -> None:
    assert pareto_plot(example_plan(options=OPTIONS[2:3])) is None
    assert pareto_plot(example_plan(options=(OPTIONS[2], replace(OPTIONS[0], hours=math.inf)))) is None


OPTION = st.builds(option, st.sampled_from([1, 2, 4, 8, 16, 24, 32, 64]), st.floats(0, 1e4), pareto=st.booleans())


@settings(deadline=None)
@given(st.lists(OPTION, min_size=2, max_size=30))
def test_no_point_hides_another(options: list[object]) -> None:
    plot = pareto_plot(example_plan(options=tuple(options)))
    assert plot is not None
    for index, one in enumerate(plot.points):
        assert plot.top - RADIUS <= one.y <= plot.bottom + 0.1 and one.x >= plot.left
        assert all(math.dist((one.x, one.y), (other.x, other.y)) >= 2 * RADIUS for other in plot.points[:index])


def test_points_apart_stay_where_they_are() -> None:
    assert side_by_side([(0, 0), (100, 0), (100, 50)]) == [(0, 0), (100, 0), (100, 50)]
    assert side_by_side([(0, 0), (5, 3)])[0] == (0, 0)
