"""Sections of docs/backtest.md about throughput, with the bars that they decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, fields

from benchmarks import fit, judge
from benchmarks.judge import SpeedResult, mean
from benchmarks.rows import extra_speed_rows, foundry_rows, gist_speed_rows
from benchmarks.tables import Bar, percent, share, table, yes
from fullft_cluster.planner import speed

Section = tuple[list[str], list[Bar]]
SPEED_MEAN, COVERED = 0.06, 0.90

MEANING = {
    "matmul_efficiency": "share of the best matrix product's speed that the products of a model's shapes reach",
    "exposed": "seconds lost per second that communication takes at the links' nominal speed",
    "deepspeed_slowdown": "computing under transformers + DeepSpeed over the same work in LLM-foundry's FSDP",
}


def covered(results: list[SpeedResult]) -> float:
    """Return the share of rows that lie in their interval."""
    return sum(result.inside for result in results) / len(results)


def speed_table(results: Iterable[SpeedResult], *, left_out: bool) -> list[str]:
    """Return measured and forecast throughput, a line a row."""
    head = ["run", "measured", "forecast", "error", "low to high", "inside"]
    rows = []
    for result in results:
        interval = f"{result.low:.0f} to {result.high:.0f}"
        line = [result.row.name, f"{result.row.tokens_per_second_per_gpu:.0f}", f"{result.ours:.0f}"]
        line += [percent(result.error), interval, yes(result.inside)]
        rows.append([*line, percent(result.left_out_error or 0.0)] if left_out else line)
    return table([*head, "left out"] if left_out else head, rows)


def constants() -> list[str]:
    """Return the fitted constants: shipped value, what the fit gives, meaning."""
    found = fit.fit(fit.rows())
    values = zip(fields(speed.Constants), astuple(speed.SHIPPED), astuple(found), strict=True)
    rows = [(f"`{f.name}`", MEANING[f.name], f"{shipped:.2f}", f"{fitted:.3f}") for f, shipped, fitted in values]
    return table(("constant", "what it is", "shipped", "fitted"), rows, right=2)


def speed_bars(results: list[SpeedResult], on_host: list[SpeedResult]) -> list[Bar]:
    """Return the bars on throughput: error of rows left out of the fit, and intervals."""
    errors = [result.left_out_error or 0.0 for result in results]
    by_engine = {
        engine: share(mean([r.left_out_error or 0.0 for r in results if r.row.setup.engine == engine]))
        for engine in ("fsdp", "deepspeed")
    }
    everything = [*results, *on_host]
    return [
        Bar(
            "throughput: mean error leave-one-out at most 6 %, three constants",
            mean(errors) <= SPEED_MEAN,
            f"{share(mean(errors))} (LLM-foundry {by_engine['fsdp']}, DeepSpeed {by_engine['deepspeed']})",
        ),
        Bar(
            "throughput: the interval holds 90 % of the rows",
            covered(everything) >= COVERED,
            f"{share(covered(everything))} of {len(everything)} rows; without offload {share(covered(results))}",
        ),
    ]


def throughput() -> Section:
    """Return the section on the rows that constants were fitted to, and offload."""
    results = judge.fitted_results()
    offloaded = [r for r in gist_speed_rows("zero3_peak_llama7b.csv") if r.setup.offload != "none"]
    on_host = [judge.speed_result(row) for row in offloaded]
    lines = [
        "## Throughput",
        "",
        "Tokens a second and GPU. Constants are fitted together to LLM-foundry's rows (FSDP) and the ZeRO table's",
        "without offload (DeepSpeed), by `python -m benchmarks.fit`; `left out` is the error of a row under constants",
        "fitted without it. What else the forecast takes (kernels' and memory's speed, traffic) is from elsewhere;",
        "its sources are in `fullft_cluster/planner/speed.py` and `configs/gpus.yaml`.",
        "",
        *constants(),
        "",
        *speed_table(results, left_out=True),
        "",
        "With the optimizer, or all, on the host. The host's speed is a default that was chosen with these three rows",
        "in view, of one machine: they are no test of it, and other hosts differ, so the interval is wide.",
        "",
        *speed_table(on_host, left_out=False),
        "",
        "![Throughput, measured and forecast](backtest-throughput.svg)",
    ]
    return lines, speed_bars(results, on_host)


def _summary(results: list[SpeedResult], key: Callable[[SpeedResult], str]) -> list[str]:
    """Return number, mean error, bias and coverage of groups of rows."""
    groups: dict[str, list[SpeedResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    rows = []
    for name, group in groups.items():
        errors = [result.error for result in group]
        worst = max(errors, key=abs)
        bias = percent(sum(errors) / len(errors))
        rows.append((name, str(len(group)), share(mean(errors)), bias, percent(worst), share(covered(group))))
    head = ("rows", "number", "mean error", "bias", "worst", "inside the interval")
    return table(head, rows)


def _group(result: SpeedResult) -> str:
    setup, source = result.row.setup, result.row.source
    where = "one node" if setup.nodes == 1 else "several nodes"
    named = "" if source == "README.md" else f", {source}"
    return f"LLM-foundry, {setup.gpu}, {where}{named}"


def extra_throughput() -> list[str]:
    """Return the section on throughput that nothing was fitted to."""
    foundry = [judge.speed_result(row) for row in foundry_rows("extra_llm_foundry.csv")]
    others = [judge.speed_result(row) for row in extra_speed_rows()]
    gist = [judge.speed_result(row) for row in gist_speed_rows("extra_zero_llama7b.csv")]
    lines = ["### Throughput", ""]
    lines += [
        "Constants are not fitted to these rows; the intervals' widths, and that they are wider for GPUs that no",
        "fitted row ran on, were set after they had been looked at.",
        "",
        *_summary(foundry, _group),
        "",
    ]
    lines += [f"All {len(foundry)} rows: {share(covered(foundry))} inside the interval.", ""]
    return [*lines, "Other stacks:", "", *speed_table([*others, *gist], left_out=False)]
