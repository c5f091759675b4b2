"""One rank that trains a few steps in each of several run directories and says what DeepSpeed holds in its tensors.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python allocation_probe.py RUN...

One process for all of them, because importing torch and deepspeed takes longer than the training. Each rank writes
RUN/allocation-RANK.json: bytes by part, and whatever large tensor belongs to no part.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fullft_cluster.rundir import RunDir
from fullft_cluster.train.setup import Identity, read_job, set_environment
from fullft_cluster.train.worker import start_process_group

UPDATES = 2
"""Optimizer steps. DeepSpeed follows the model in its first forward pass, records it in the second and fetches ahead
from the third on, so two updates of two micro-steps each see all of it."""
LARGE = 2048
"""Bytes from which on a tensor has to belong to a part; below are scalars, norms and rotary frequencies."""


class Books:
    """Storages by part, each counted once."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}
        self._seen: set[int] = set()

    def enter(self, part: str, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.parts[part] = self.parts.get(part, 0) + storage.nbytes()

    def rest(self, before: list[Any]) -> list[str]:
        """Return the large tensors of this process that were not entered, but for those of the runs before."""
        known = self._seen | {tensor.untyped_storage()._cdata for tensor in before}
        unknown = {t.untyped_storage()._cdata: t for t in large() if t.untyped_storage()._cdata not in known}
        return sorted(f"{t.untyped_storage().nbytes()} bytes: {t.dtype} {tuple(t.shape)}" for t in unknown.values())


def large() -> list[Any]:
    """Return the tensors of this process whose storages are large."""
    import torch

    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return [t for t in tensors if t.device.type != "meta" and t.untyped_storage().nbytes() >= LARGE]


def stage3(optimizer: Any, books: Books) -> None:
    """Enter what ZeRO-3 holds between two steps (deepspeed/runtime/zero/stage3.py)."""
    flat = getattr(optimizer, "lp_param_buffer", None)
    books.enter("parameters", optimizer.param_groups_fp16_flat_cpu_memory if flat is None else [flat])
    books.enter("gradients", [optimizer.grad_partitions_flat_buffer])
    masters = optimizer.fp32_partitioned_groups_flat
    books.enter("optimizer_states", masters)
    books.enter("fp32_gradients", [master.grad for master in masters if master.grad is not None])
    moments(optimizer.optimizer, books)
    books.enter("reduce_bucket", [bucket.buffer for bucket in optimizer.ipg_buckets.values()])
    books.enter("persistent_parameters", [p.data for p in optimizer.persistent_parameters])


def stage2(optimizer: Any, books: Books) -> None:
    """Enter what ZeRO-1 and 2 hold between two steps (deepspeed/runtime/zero/stage_1_and_2.py)."""
    books.enter("parameters", optimizer.bit16_groups_flat)
    masters = optimizer.single_partition_of_fp32_groups
    books.enter("optimizer_states", masters)
    books.enter("fp32_gradients", [master.grad for master in masters if master.grad is not None])
    moments(optimizer.optimizer, books)
    if optimizer.cpu_offload:
        books.enter("parameter_copies", optimizer.param_buffer_of_bit16_for_cpu_offload_groups)
        books.enter("gradients", optimizer.accumulated_grads_in_cpu.values())
        books.enter("staging", [optimizer.temp_grad_buffer_for_cpu_offload, optimizer.temp_grad_buffer_for_gpu_offload])


def moments(adam: Any, books: Books) -> None:
    for state in adam.state.values():
        books.enter("optimizer_states", [state["exp_avg"], state["exp_avg_sq"]])


class Watch:
    """What is largest while the engine works, beside what is there between two steps."""

    def __init__(self, engine: Any) -> None:
        self.found: dict[str, int] = {}
        self._optimizer = engine.optimizer
        self._parameters = list(engine.module.parameters())
        if engine.zero_optimization_stage() == 3:
            self._after(engine.optimizer.parameter_offload.get_param_coordinator(), "fetch_sub_module", self._gathered)
            self._after(engine.optimizer, "_prepare_sub_group", self._fp32_gradient)
        else:
            self._after(engine.optimizer, "setup_buckets", self._buckets)
            self._after(engine.optimizer, "independent_gradient_partition_epilogue", self._gradients)

    def _after(self, owner: Any, method: str, look: Callable[..., None]) -> None:
        original = getattr(owner, method)

        def wrapped(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            look(*args)
            return result

        setattr(owner, method, wrapped)

    def _most(self, part: str, size: int) -> None:
        self.found[part] = max(self.found.get(part, 0), size)

    def _gathered(self, *_: Any) -> None:
        whole = [p for p in self._parameters if p.ds_status.name != "NOT_AVAILABLE" and not p.ds_persist]
        self._most("gathered_elements", sum(p.ds_numel for p in whole))
        second = [p.ds_secondary_tensor for p in self._parameters if p.ds_secondary_tensor is not None]
        self._most("secondary_parameters", sum(t.numel() * t.element_size() for t in second))

    def _fp32_gradient(self, sub_group: int, *_: Any) -> None:
        gradient = self._optimizer.fp32_partitioned_groups_flat[sub_group].grad
        self._most("fp32_gradient_of_a_sub_group", gradient.numel() * gradient.element_size())

    def _buckets(self, *_: Any) -> None:
        buffers = [tensor for bucket in self._optimizer.ipg_buckets.values() for tensor in bucket.buffer]
        self._most("reduce_bucket", sum(tensor.numel() * tensor.element_size() for tensor in buffers))

    def _gradients(self, *_: Any) -> None:
        books = Books()
        for group in self._optimizer.averaged_gradients.values():
            books.enter("gradients", group or [])
        self._most("gradients_in_backward", books.parts.get("gradients", 0))


def probe(path: Path, identity: Identity) -> None:
    """Train in one run directory and write down what it held."""
    import numpy as np
    import torch

    from fullft_cluster.train.data import Batch
    from fullft_cluster.train.deepspeed_engine import DeepSpeedEngine

    job = read_job(RunDir(path), 1, identity)
    before = large()
    engine = DeepSpeedEngine(job, torch.device("cpu"), total_steps=UPDATES)
    inner = engine._engine
    watch = Watch(inner)
    ids = np.arange(job.plan.micro_batch_size * job.plan.seq_len).reshape(job.plan.micro_batch_size, -1)
    positions = np.broadcast_to(np.arange(job.plan.seq_len), ids.shape).copy()
    batch = Batch(input_ids=ids, labels=ids, position_ids=positions)
    for _ in range(UPDATES * job.plan.gradient_accumulation_steps):
        engine.micro_step(batch, labels_in_step=ids.size)
    gc.collect()
    books = Books()
    (stage3 if inner.zero_optimization_stage() == 3 else stage2)(inner.optimizer, books)
    report = {**books.parts, **watch.found, "rest": books.rest(before)}
    (path / f"allocation-{identity.rank}.json").write_text(json.dumps(report, indent=1))
    inner.destroy()


def main() -> None:
    runs = [Path(argument) for argument in sys.argv[1:]]
    identity = Identity.from_environment(os.environ)
    set_environment(os.environ, "cpu")
    start_process_group(read_job(RunDir(runs[0]), 1, identity))
    import torch.distributed as dist

    code = 0
    try:
        for run in runs:
            probe(run, identity)
            dist.barrier()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    # As the worker leaves: a gloo thread that outlives the interpreter would abort a success.
    os._exit(code)


if __name__ == "__main__":
    main()
