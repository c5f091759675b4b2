"""The benchmark of training runs from end to end, small: what it measures has the right shape, and nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import training, training_gpu  # noqa: E402
from benchmarks.training_page import OURS  # noqa: E402
from benchmarks.training_stats import ratio, speeds, spread  # noqa: E402


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_it_measures_all_candidates_and_writes_what_the_samples_say(tmp_path: Path) -> None:
    assert training.main(["--quick", str(tmp_path)]) == 0
    raw = json.loads((tmp_path / "training.json").read_text())
    (compared,) = raw["comparisons"]
    assert list(compared["ways"].values()) == ["ours", "padded", "sft"]
    rounds = {len(samples) for samples in compared["samples"].values()}
    assert rounds == {training.QUICK.rounds}
    size = training.QUICK.case.seq_len
    for name, samples in compared["samples"].items():
        for seconds, tokens, steps in samples:
            assert seconds > 0
            assert steps == training.QUICK.steps
            assert 0 < tokens <= size * steps, f"{name}: no more useful tokens than a sequence holds"
    assert len({facts["threads"] for facts in compared["facts"].values()}) == 1, "all compute with as many threads"
    (overhead,) = raw["overhead"]
    assert len(overhead["pairs"]) == training.QUICK.overhead[0][1]
    text = (tmp_path / "benchmarks.md").read_text()
    ours, other = compared["samples"][OURS], compared["samples"]["TRL SFTTrainer, packing"]
    assert f"{ratio(ours, other).median:.2f}" in text
    assert f"{spread(speeds(ours)).median:,.0f}"[:3] in text
    assert training.RAW.parent != tmp_path, "nothing of it goes to the page of the documentation"


def test_the_part_for_a_gpu_runs_on_cpus(tmp_path: Path) -> None:
    import torch

    assert training.main(["--gpu", "--quick", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "training_gpu.json").read_text())
    (case,) = training_gpu.quick_cases()
    for kind, samples in row["samples"].items():
        assert len(samples) == case.repeats
        for seconds, useful, computed in samples:
            assert seconds > 0
            assert computed == case.accumulation * case.memory.micro_batch_size * case.memory.seq_len
            assert (useful == computed) is (kind == "full")
    useful = {kind: samples[0][1] for kind, samples in row["samples"].items()}
    assert useful["packed"] > useful["padded"]
    assert "Training on one GPU" in (tmp_path / "benchmarks.md").read_text()
    if not torch.cuda.is_available():
        assert training.main(["--gpu"]) == 2
