"""The blocks that our worker learns from, for who measures beside it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.training_case import Bench
from fullft_cluster.plan import Plan
from fullft_cluster.train.data import Order, PackedData


def our_blocks(bench: Bench) -> tuple[PackedData, Order]:
    """Return the prepared data, and the order that the worker takes it in."""
    plan = Plan.from_json(bench.run.plan.read_bytes())
    data = PackedData(Path(json.loads(bench.run.data.read_text())["cache"]))
    order = Order(
        blocks=len(data), global_batch_size=plan.global_batch_size, epochs=plan.epochs, max_steps=plan.max_steps,
        seed=plan.seed,
    )  # fmt: skip
    return data, order
