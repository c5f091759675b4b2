"""However the loss is computed, it is the same loss with the same gradients: alone, under ZeRO-3 and under FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_run import run_ranks

pytestmark = pytest.mark.distributed


def test_under_zero3_and_fsdp(tmp_path: Path) -> None:
    """Two ranks, tied and untied, with a micro-step in which one rank has nothing to predict."""
    run_ranks(tmp_path, Path(__file__).with_name("loss_probe.py"), [])
