"""One rank of one candidate: python -m benchmarks.training_rank WAY BENCH; training_turns.py starts it.

Ways: `ours` (the worker as the node agent starts it), `padded` (transformers' Trainer, each row padded), `sft` (TRL's
SFTTrainer with packing), `trainer` (transformers' Trainer on our packed blocks, in memory); `-plain` behind one of the
last three leaves DeepSpeed out. `overhead` is ours beside a bare loop in one process (training_overhead.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.training_case import Bench
from benchmarks.training_turns import Turns
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import exits, worker
from fullft_cluster.train.setup import Identity
from fullft_cluster.train.stop import StopFlag


class TurnsAtSteps(StopFlag):
    """Asked once a step by every rank whether to stop, this one counts the steps, and waits between turns.

    It is asked once more before the first step. The measured worker is the real one, to the last file that it writes.
    """

    def __init__(self, turns: Turns, ready: Callable[[], None]) -> None:
        super().__init__()
        self._turns, self._ready, self._started = turns, ready, False

    def wanted(self, run: RunDir, rank: int) -> bool:
        """Count a step."""
        if self._started:
            self._turns.step_done()
        else:
            self._started = True
            self._ready()
            self._turns.start()
        return super().wanted(run, rank)


def note_threads(turns: Turns) -> None:
    """Remember how many threads torch computes with."""
    import torch  # noqa: PLC0415

    turns.facts["threads"] = torch.get_num_threads()


def count_our_tokens(bench: Bench, turns: Turns, rank: int) -> None:
    """Count by the order of blocks; rank 0 alone, because it knows those of all ranks."""
    from benchmarks.training_blocks import our_blocks  # noqa: PLC0415

    data, order = our_blocks(bench)
    turns.count_tokens(
        lambda first, last: 0 if rank else sum(data.tokens_in(order.step(step)) for step in range(first, last))
    )


def run_ours(bench: Bench, turns: Turns) -> int:
    """Run the worker."""
    identity = Identity.from_environment(os.environ)

    def ready() -> None:
        note_threads(turns)
        count_our_tokens(bench, turns, identity.rank)

    return worker.work(bench.run, 1, identity, TurnsAtSteps(turns, ready))


def main() -> None:
    """Run a way to train until the parent wants no more."""
    way, bench, turns = sys.argv[1], Bench(Path(sys.argv[2])), Turns()
    if way == "ours":
        os._exit(run_ours(bench, turns) or exits.DONE)
    if way == "overhead":
        from benchmarks.training_overhead import run_overhead  # noqa: PLC0415

        os._exit(run_overhead(bench, turns))
    from benchmarks import training_others  # noqa: PLC0415  transformers' Trainer, which ours does without

    training_others.run(way, bench, turns)


if __name__ == "__main__":
    main()
