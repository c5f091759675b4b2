"""The section of docs/backtest.md on peaks that `benchmarks/gpu_memory.py` measured, where a GPU was at hand."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.gpu_memory import Case, planned_gib
from benchmarks.judge import mean
from benchmarks.rows import DATA, Fields, read
from benchmarks.tables import Bar, percent, table

MEASURED = "gpu_memory.csv"
OWN_ROW = 0.05


def case_of(row: Fields) -> Case:
    """Return the case of a line of the file."""
    values: dict[str, Any] = {}
    for field in fields(Case):
        text, default = row[field.name], field.default
        values[field.name] = text == "True" if isinstance(default, bool) else type(default)(text)
    return Case(**values)


def own_gpu(folder: Path = DATA) -> tuple[list[str], list[Bar]]:
    """Return the section, and its bar where there is something to judge."""
    lines = ["## Peaks that we measured ourselves", ""]
    if not (folder / MEASURED).is_file():
        lines += [
            "None yet: it takes a GPU, which was not at hand. `python -m benchmarks.gpu_memory --out",
            f"benchmarks/data/{MEASURED}` measures 26 cases in under ten minutes, and this page then shows them.",
        ]
        return lines, []
    measured = [row for row in read(MEASURED) if not row["error"]]
    failed = [row for row in read(MEASURED) if row["error"]]
    rows, errors = [], []
    for row in measured:
        case, allocated = case_of(row), float(row["allocated_gib"])
        ours = planned_gib(case)
        errors.append(ours / allocated - 1)
        size = f"{case.layers} layers, vocabulary {case.vocab}, {case.seq_len} x {case.micro_batch_size}"
        kept = "recomputed" if case.activation_checkpointing else "all kept"
        what = f"{size}, {kept}, {case.loss} loss, offload {case.offload}"
        rows.append((what, f"{allocated:.2f}", f"{ours:.2f}", percent(errors[-1])))
    first = measured[0]
    lines += [
        f"ZeRO-3 on one {first['gpu']}, torch {first['torch']}, DeepSpeed {first['deepspeed']}, transformers",
        f"{first['transformers']}, random LLaMA-shaped models. {len(failed)} cases did not run.",
        "",
        *table(("case", "measured GiB", "ours GiB", "our error"), rows),
    ]
    worst = max(errors, key=abs)
    figure = f"worst {percent(worst)}, mean {percent(mean(errors))}"
    return lines, [Bar("own measurements on a GPU: every case within 5 %", abs(worst) <= OWN_ROW, figure)]
