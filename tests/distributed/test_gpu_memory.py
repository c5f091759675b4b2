"""The memory benchmark's code runs without a GPU, and says so where there is none."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from training_run import DEADLINE_SECONDS, ROOT

pytestmark = pytest.mark.distributed

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_memory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)


def test_every_way_through_the_code_on_cpus(tmp_path: Path) -> None:
    from benchmarks.gpu_memory import COLUMNS, PHASES, smoke_cases

    out = tmp_path / "smoke.csv"
    done = benchmark("--device", "cpu", "--smoke", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(smoke_cases()) == done.stdout.count("planned")
    for row in rows:
        assert tuple(row) == COLUMNS
        assert row["gpu"] == "cpu"
        assert row["error"] == ""
        peaks = [float(row[f"{phase}_gib"]) for phase in PHASES]
        assert 0 < max(peaks) <= float(row["allocated_gib"]) + 1e-9


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = benchmark("--out", str(tmp_path / "none.csv"))
    assert done.returncode == 2
    assert "sees no GPU" in done.stdout
    assert not (tmp_path / "none.csv").exists()
    assert benchmark("--device", "cpu", "--out", str(tmp_path / "none.csv")).returncode == 2


def test_cases_are_distinct_and_fit_one_gpu() -> None:
    from benchmarks.gpu_memory import all_cases, planned_gib

    cases = all_cases()
    assert len(set(cases)) == len(cases)
    assert all(2 < planned_gib(case) < 72 for case in cases)
