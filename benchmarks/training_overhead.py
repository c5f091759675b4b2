"""Our step beside the barest one: deepspeed.initialize, same model, attention, loss and optimizer, ready batches.

Both live in one process and take turns step by step, because two processes differ by more than the overhead that is
looked for. After each step of our worker (with all that it does: data, agreement, heartbeat, log, metrics) the bare
loop does the step with the same tokens. A barrier ends each, so that neither's time goes to the other's account.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.training_blocks import our_blocks
from benchmarks.training_case import Bench
from benchmarks.training_turns import Turns
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import worker
from fullft_cluster.train.attention import model_inputs
from fullft_cluster.train.data import IGNORE, rank_share
from fullft_cluster.train.document_attention import use_document_attention
from fullft_cluster.train.loss import loss_of
from fullft_cluster.train.optimizer import parameter_groups
from fullft_cluster.train.setup import Identity
from fullft_cluster.train.stop import StopFlag

KEPT_STEPS = 32
"""Steps whose batches the bare loop holds in memory; it goes through them again and again."""


class BareLoop:
    """deepspeed.initialize and the calls that its documentation shows."""

    def __init__(self, bench: Bench, identity: Identity) -> None:
        import deepspeed  # noqa: PLC0415
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        case = bench.case
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        # Sharded as it is loaded: our engine's HfDeepSpeedConfig is alive.
        model = AutoModelForCausalLM.from_pretrained(bench.model, dtype=dtype, attn_implementation="sdpa")
        use_document_attention(model)
        model.train()
        plan = Plan.from_json(bench.run.plan.read_bytes())
        self._kind = plan.loss
        self._engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameter_groups(model, plan.weight_decay), config=bench.deepspeed()
        )
        self._steps = [self._batches(bench, step, identity) for step in range(KEPT_STEPS)]

    @staticmethod
    def _batches(bench: Bench, step: int, identity: Identity) -> list[tuple[dict[str, Any], torch.Tensor, int]]:
        data, order = our_blocks(bench)
        share = rank_share(
            order.step(step), rank=identity.rank, world_size=identity.world_size,
            micro_batch_size=bench.case.micro_batch_size,
        )  # fmt: skip
        made = []
        for blocks in share:
            inputs, labels = model_inputs(data.batch(blocks), torch.device("cpu"), flatten=False)
            made.append((inputs, labels, int((labels != IGNORE).sum())))
        return made

    def step(self, number: int) -> None:
        """Do one optimizer step."""
        for inputs, labels, count in self._steps[number % KEPT_STEPS]:
            loss = loss_of(self._engine, inputs, labels, self._kind)
            self._engine.backward(loss / count)
            self._engine.step()


class PairedSteps(StopFlag):
    """Asked once a step whether to stop, this one ends our step's time, and does the bare step."""

    def __init__(self, bench: Bench, turns: Turns, identity: Identity) -> None:
        super().__init__()
        self._bench, self._turns, self._identity = bench, turns, identity
        self._bare: BareLoop | None = None
        self._number = 0
        self._began = 0.0
        self._pairs: list[tuple[float, float]] = []

    def wanted(self, run: RunDir, rank: int) -> bool:
        """Note the two times of a step."""
        if self._bare is None:
            self._bare = BareLoop(self._bench, self._identity)
            self._turns.facts["threads"] = torch.get_num_threads()
            self._turns.facts["pairs"] = self._pairs
            self._turns.start()
        else:
            dist.barrier()
            ours = time.perf_counter() - self._began
            began = time.perf_counter()
            self._bare.step(self._number)
            dist.barrier()
            self._pairs.append((ours, time.perf_counter() - began))
            self._number += 1
            self._turns.step_done()
        self._began = time.perf_counter()
        return super().wanted(run, rank)


def run_overhead(bench: Bench, turns: Turns) -> int:
    """Run the worker with the bare loop beside it."""
    identity = Identity.from_environment(os.environ)
    return worker.work(bench.run, 1, identity, PairedSteps(bench, turns, identity))


def pairs_of(facts: dict[str, Any], warmup: int) -> list[tuple[float, float]]:
    """Return (ours, bare) seconds of each step after warming up."""
    return [(ours, bare) for ours, bare in facts["pairs"][warmup:]]
