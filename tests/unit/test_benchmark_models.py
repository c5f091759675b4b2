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


def test_other_sizes_are_unknown():
    with pytest.raises(KeyError):
        mpt_spec("1b", 2048)
