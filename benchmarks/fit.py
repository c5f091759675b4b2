"""Fits the three constants of planner/speed.py to published throughput, and says how well they do on rows left out.

`python -m benchmarks.fit` prints them. They are fitted together to two stacks: LLM-foundry's rows (FSDP) and the rows
of the ZeRO table without offload (DeepSpeed). What is minimised is the mean of |log(forecast / measured)|, which
one bad row moves less than squares would. Plain Python: three constants need no library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields

from benchmarks.rows import SpeedRow, foundry_rows, gist_speed_rows
from fullft_cluster.hardware import load_gpu
from fullft_cluster.planner import speed
from fullft_cluster.planner.speed import Constants

START = Constants(matmul_efficiency=0.8, exposed=1.0, deepspeed_slowdown=1.5)
"""Where the search begins: not what is shipped, which it is to check."""
FIRST_STRIDE = 0.2
LAST_STRIDE = 1e-4
"""Relative strides of the search: it halves them until a constant is settled to a ten-thousandth."""


def rows() -> list[SpeedRow]:
    """Return the rows that constants are fitted to."""
    gist = [row for row in gist_speed_rows("zero3_peak_llama7b.csv") if row.setup.offload == "none"]
    return foundry_rows("fsdp_throughput_a100_80gb.csv") + gist


def tokens_per_second_per_gpu(row: SpeedRow, constants: Constants = speed.SHIPPED) -> float:
    """Return the planner's forecast for a row."""
    return row.setup.tokens * row.setup.accumulation / sum(step_parts(row, constants).values())


def step_parts(row: SpeedRow, constants: Constants = speed.SHIPPED) -> dict[str, float]:
    """Return the seconds of a step that the planner expects, by cause."""
    return speed.step_seconds(row.setup, load_gpu(row.cluster.gpu), row.cluster, constants)


def error(row: SpeedRow, constants: Constants = speed.SHIPPED) -> float:
    """Return the forecast's relative error: positive where it promises too much."""
    return tokens_per_second_per_gpu(row, constants) / row.tokens_per_second_per_gpu - 1


def minimise(loss: Callable[[list[float]], float], start: Sequence[float]) -> list[float]:
    """Return where ``loss`` is least: steps along each axis in the logarithm, halved when none is better."""
    best_at, stride = list(start), FIRST_STRIDE
    best = loss(best_at)
    while stride > LAST_STRIDE:
        moved = False
        for axis in range(len(best_at)):
            for factor in (1 + stride, 1 / (1 + stride)):
                tried = [value * factor if i == axis else value for i, value in enumerate(best_at)]
                if (value := loss(tried)) < best:
                    best, best_at, moved = value, tried, True
        stride = stride if moved else stride / 2
    return best_at


def fit(data: Sequence[SpeedRow], start: Constants = START) -> Constants:
    """Return the constants that minimise the mean absolute log error over ``data``."""

    def loss(values: list[float]) -> float:
        constants = Constants(*values)
        return sum(abs(math.log1p(error(row, constants))) for row in data)

    return Constants(*minimise(loss, astuple(start)))


def leave_one_out(data: Sequence[SpeedRow]) -> list[float]:
    """Return each row's error under constants fitted to all rows but that one."""
    whole = fit(data)
    left_out = (fit([*data[:i], *data[i + 1 :]], whole) for i in range(len(data)))
    return [error(row, constants) for row, constants in zip(data, left_out, strict=True)]


def main() -> None:
    """Print the constants, and the mean errors."""
    data = rows()
    constants = fit(data)
    for field, value, shipped in zip(fields(Constants), astuple(constants), astuple(speed.SHIPPED), strict=True):
        print(f"{field.name:22} {value:.3f}   shipped {shipped}")
    errors = [abs(error(row, constants)) for row in data]
    left_out = [abs(value) for value in leave_one_out(data)]
    print(f"mean error {sum(errors) / len(errors):.1%}, leave-one-out {sum(left_out) / len(left_out):.1%}")


if __name__ == "__main__":
    main()
