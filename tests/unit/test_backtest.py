"""docs/backtest.md is what the backtest writes, bars that are met stay met, constants are what the fit gives."""

from __future__ import annotations

import ast
import csv
import importlib.util
import math
import os
import sys
from dataclasses import asdict, astuple, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import competitors, fit, gpu_section, judge, planner_backtest, plots, rows, tables  # noqa: E402
from benchmarks.competitors import Case  # noqa: E402
from benchmarks.gpu_memory import COLUMNS, planned_gib  # noqa: E402
from benchmarks.gpu_memory import Case as Measured  # noqa: E402
from fullft_cluster.hardware import load_gpu  # noqa: E402
from fullft_cluster.planner import speed  # noqa: E402

NOT_MET = {
    # bar: what it may still miss. 16 B x 32.5e9 / 6 = 80.75 GiB of states do not fit 79.1 (benchmarks/data/README.md).
    "minimum GPUs as published": "30b on 6 x a100-80gb, 2048 x 1: ours 7",
}
ZERO3 = 6
"""The table's first rows."""


@pytest.fixture(scope="module")
def backtest():
    return planner_backtest.page()


def test_the_page_is_what_the_backtest_writes(backtest):
    text, _ = backtest
    assert planner_backtest.PAGE.read_text(encoding="utf-8") == text, "run `python -m benchmarks.planner_backtest`"
    assert plots.stale(planner_backtest.DOCS) == []
    for name in plots.FIGURES:
        assert "<dc:date>" not in (planner_backtest.DOCS / name).read_text(encoding="utf-8")
        assert f"]({name})" in text


def test_a_figure_that_is_not_what_would_be_drawn_is_noticed(tmp_path):
    assert plots.stale(tmp_path) == list(plots.FIGURES)
    pytest.importorskip("matplotlib")
    plots.draw(tmp_path)
    assert plots.stale(tmp_path) == []
    changed = tmp_path / plots.FIGURES[0]
    changed.write_text(changed.read_text(encoding="utf-8") + "<!-- -->", encoding="utf-8")
    assert plots.stale(tmp_path) == [plots.FIGURES[0]]


def test_bars_that_are_met_stay_met(backtest):
    _, bars = backtest
    assert len(bars) == 10 + (rows.DATA / gpu_section.MEASURED).is_file()
    missed = {bar.asked: bar.figure for bar in bars if not bar.met}
    assert missed == NOT_MET


def test_bars_that_are_not_met_are_shown_as_such(backtest):
    text, bars = backtest
    for bar in bars:
        assert f"| {bar.asked} | {'met' if bar.met else '**not met**'} | {bar.figure} |" in text
    assert tables.Bar("x", False, "y").row() == ("x", "**not met**", "y")


def test_shipped_constants_are_what_the_fit_gives():
    assert len(astuple(speed.SHIPPED)) <= 3
    fitted = fit.fit(fit.rows())
    assert [round(value, 2) for value in astuple(fitted)] == [round(value, 2) for value in astuple(speed.SHIPPED)]


def test_the_fit_finds_constants_that_made_the_rows():
    made_by = speed.Constants(matmul_efficiency=0.7, exposed=1.5, deepspeed_slowdown=1.2)
    data = [replace(row, tokens_per_second_per_gpu=fit.tokens_per_second_per_gpu(row, made_by)) for row in fit.rows()]
    found = fit.fit(data)
    assert astuple(found) == pytest.approx(astuple(made_by), rel=0.01)
    assert max(abs(error) for error in fit.leave_one_out(data[::6])) < 0.02


def test_rows_that_nothing_is_fitted_to_are_in_no_fit():
    sources = {row.source for row in fit.rows()}
    assert sources == {"README.md", "gist"}
    assert len(fit.rows()) == 20 + 6
    assert all(row.setup.offload == "none" for row in fit.rows())


def test_an_interval_that_misses_is_counted(backtest):
    result = judge.speed_result(fit.rows()[0])
    low, high = result.low, result.high
    assert replace(result, row=replace(result.row, tokens_per_second_per_gpu=high * 1.01)).inside is False
    assert replace(result, row=replace(result.row, tokens_per_second_per_gpu=low * 0.99)).inside is False


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("deepspeed/runtime/zero/stage3.py", "estimate_zero3_model_states_mem_needs"),
        ("deepspeed/runtime/zero/stage_1_and_2.py", "estimate_zero2_model_states_mem_needs"),
        ("accelerate/commands/estimate.py", "estimate_training_usage"),
    ],
)
def test_restated_formulas_are_those_that_are_installed(file, function):
    original = _installed(file, function)
    for row in rows.memory_rows("zero3_peak_llama7b.csv"):
        case, parameters = row.case, row.case.model.parameters
        if function == "estimate_training_usage":
            assert max(original(4 * parameters, "float16").values()) == competitors.accelerate_gpu(case)
        elif function.startswith("estimate_zero2") and case.zero_stage == 2:
            host, gpu = original(parameters, 8, 1, case.offload_optimizer)
            assert (gpu, host) == (competitors.deepspeed_gpu(case), competitors.deepspeed_host(case))
        elif function.startswith("estimate_zero3") and case.zero_stage == 3:
            largest = competitors.largest_module(case.model)
            host, gpu, _ = original(parameters, largest, 8, 1, case.offload_optimizer, case.offload_param, False)
            assert (gpu, host) == (competitors.deepspeed_gpu(case), competitors.deepspeed_host(case))


def _installed(file: str, function: str):
    """Return a function of an installed package without importing the package, which takes seconds and torch."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(spec.origin).parent / rest).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    for argument in found.args.args:
        argument.annotation = None
    found.returns = None
    space: dict = {}
    exec(compile(ast.Module(body=[found], type_ignores=[]), file, "exec"), space)
    return space[function]


def test_the_other_tools_miss_by_what_is_known_of_them():
    results = [judge.memory_result(row) for row in rows.memory_rows("zero3_peak_llama7b.csv")][:ZERO3]
    deepspeed = [result.error_of("DeepSpeed estimator") for result in results]
    assert (max(deepspeed), min(deepspeed)) == (pytest.approx(-0.28, abs=0.01), pytest.approx(-0.94, abs=0.01))
    eleuther = [result.error_of("EleutherAI cookbook") for result in results]
    assert (min(eleuther), max(eleuther)) == (pytest.approx(1.50, abs=0.01), pytest.approx(5.45, abs=0.01))


def test_llm_analysis_says_what_its_own_code_said():
    # What version 0.2.2 returned for decapoda-research_llama-7b-hf, sequence 4096, 8 GPUs.
    llama = rows.load_model("7b")
    recomputed, kept = Case(llama, 8, 1, 2, 4096, True), Case(llama, 8, 1, 2, 4096, False)
    assert competitors.llm_analysis_gpu(recomputed) == 17462797312
    assert competitors.llm_analysis_gpu(kept) == 59540055040
    assert competitors.llm_analysis_gpu(Case(llama, 8, 1, 1, 4096, True, zero_stage=2)) == 27893186560


def test_published_mfu_and_tokens_agree():
    # Each digit was copied by hand or machine; the source's own formula ties two of the columns.
    for row, fields in zip(rows.foundry_rows("extra_llm_foundry.csv"), rows.read("extra_llm_foundry.csv"), strict=True):
        model, setup = row.setup.model, row.setup
        flops = 6 * model.parameters + 12 * model.num_hidden_layers * model.hidden_size * setup.seq_len
        peak = 989.5 if fields["gpu"] == "h100" else load_gpu(setup.gpu).peak_tflops
        mfu = 100 * flops * row.tokens_per_second_per_gpu / (peak * 1e12)
        assert mfu == pytest.approx(float(fields["mfu_percent"]), rel=0.008), row.name


def test_models_have_the_published_parameters():
    for row, fields in zip(
        rows.foundry_rows("fsdp_throughput_a100_80gb.csv"), rows.read("fsdp_throughput_a100_80gb.csv"), strict=True
    ):
        assert row.setup.model.parameters == int(fields["parameters"])
    for fields in rows.read("extra_throughput.csv"):
        assert rows.shape(fields["model"]).parameters == int(fields["parameters"])


def test_moments_are_missing_where_less_is_allocated_than_the_states():
    before = [row.name for row in rows.memory_rows("zero3_peak_llama7b.csv") if row.before_first_step]
    assert before == ["ZeRO-2, all kept, batch 1", "ZeRO-2, recomputed, batch 1"]
    assert not any(row.before_first_step for row in rows.memory_rows("extra_zero_llama7b.csv"))


def test_own_measurements_are_taken_in(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "DATA", tmp_path)
    lines, bars = gpu_section.own_gpu(tmp_path)
    assert bars == []
    assert "None yet" in "\n".join(lines)
    case = Measured(layers=8, activation_checkpointing=False, loss="chunked")
    planned = planned_gib(case)
    known = {"gpu": "X", "torch": "1", "deepspeed": "2", "transformers": "3", "error": ""}
    values = {**known, **asdict(case)}
    with (tmp_path / gpu_section.MEASURED).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerow({**values, "allocated_gib": planned / 1.02})
        writer.writerow({**values, "allocated_gib": "", "error": "out of memory"})
    lines, [bar] = gpu_section.own_gpu(tmp_path)
    assert bar.met
    assert bar.figure == "worst +2.0 %, mean +2.0 %"
    assert "8 layers" in lines[-1]
    assert "all kept, chunked loss" in lines[-1]
    with (tmp_path / gpu_section.MEASURED).open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, restval="").writerow({**values, "allocated_gib": planned * 1.2})
    assert not gpu_section.own_gpu(tmp_path)[1][0].met


def test_data_is_the_published_data():
    shared = Path(os.environ.get("FULLFT_CLUSTER_SHARED", ROOT.parent / "shared")) / "measured"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there to compare with")
    for original in sorted(shared.glob("*.csv")):
        assert (rows.DATA / original.name).read_bytes() == original.read_bytes(), original.name


def test_errors_are_shown_with_their_sign():
    assert [tables.percent(value) for value in (0.1234, -0.05, 0.0, -0.0001)] == ["+12.3 %", "−5.0 %", "0.0 %", "0.0 %"]
    assert judge.mean([-0.1, 0.3]) == pytest.approx(0.2)
    assert math.isclose(judge.MOMENTS, 8)
