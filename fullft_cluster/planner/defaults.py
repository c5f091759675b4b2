"""What is learnt by default: learning rate by size, epochs by rows. Mathematics: it depends on no machine."""

from __future__ import annotations

LEARNING_RATES: tuple[tuple[float, float], ...] = (
    # (parameters from here on, peak learning rate). Customary for full fine-tuning with AdamW: 1e-5 for 7B, halved or
    # more with each size, as LLaMA's own fine-tunes and common recipes do; the thresholds lie between the sizes.
    (45e9, 1e-6),  # 65B
    (20e9, 2e-6),  # 30B
    (10e9, 5e-6),  # 13B
    (3e9, 1e-5),  # 7B
    (8e8, 2e-5),  # 1B
    (1e8, 1e-4),
    (0, 1e-3),  # toys, from random weights
)

EPOCHS: tuple[tuple[float, int], ...] = (
    # (rows below, epochs): small sets bear repetition, large ones do not need it.
    (10_000, 3),
    (100_001, 2),
    (float("inf"), 1),
)


def learning_rate(parameters: int) -> float:
    """Return the peak learning rate for a model of this many parameters (see LEARNING_RATES)."""
    return next(rate for least, rate in LEARNING_RATES if parameters >= least)


def epochs(rows: int | None) -> int:
    """Return the passes over the data: 3 below 10,000 rows or where they are not known, 2 to 100,000, 1 above."""
    return next(count for below, count in EPOCHS if (rows or 0) < below)
