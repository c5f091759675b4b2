"""The memory benchmark's code runs without a GPU, says so where there is none, and its chunked loss is the loss."""

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


def test_the_chunked_loss_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with a last chunk that is shorter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks import gpu_memory_case
    from fullft_cluster.train.attention import model_inputs
    from fullft_cluster.train.loss import token_loss_sum

    monkeypatch.setattr(gpu_memory_case, "LOSS_CHUNK_TOKENS", 10)
    case = gpu_memory_case.Case(vocab=50, seq_len=12, micro_batch_size=2)
    config = AutoConfig.for_model(
        "llama", vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    inputs, labels = model_inputs(gpu_memory_case.make_batch(case), torch.device("cpu"), flatten=False)
    results = []
    for loss in (
        gpu_memory_case.chunked_loss_sum(model, inputs, labels), token_loss_sum(model(**inputs).logits, labels)
    ):  # fmt: skip
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for chunked, whole in zip(*results, strict=True):
        assert torch.allclose(chunked, whole, rtol=1e-4, atol=1e-6)
