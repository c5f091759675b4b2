"""Models known for published measurements alone have the parameters that were published with them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.models import mpt_spec  # noqa: E402  # benchmarks/ is no part of the package


def test_mpt_models_have_the_parameters_of_every_published_run():
    path = ROOT / "benchmarks" / "data" / "fsdp_throughput_a100_80gb.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert len(rows) >= 20
    for row in rows:
        assert mpt_spec(row["model"], int(row["seq_len"])).parameters == int(row["parameters"])


@pytest.mark.parametrize(
    ("size", "seq_len", "parameters"),
    # https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md
    [("1b", 512, 1312804864), ("1b", 2048, 1315950592), ("3b", 512, 2647905280), ("3b", 2048, 2651837440)],
)
def test_the_small_mpt_models_too(size: str, seq_len: int, parameters: int):
    assert mpt_spec(size, seq_len).parameters == parameters
