"""One rank that computes a loss and its gradients plainly, under ZeRO-3 and under FSDP2, compiled too; all are equal.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python loss_probe.py

The first micro-step leaves rank 1 without any label: it has to take part in the collectives all the same.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch.distributed.fsdp import fully_shard
from training_run import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from fullft_cluster.train import kernels
from fullft_cluster.train import loss as loss_module
from fullft_cluster.train.loss import loss_of, token_loss_sum
from fullft_cluster.train.setup import set_environment
from fullft_cluster.train.weights import draw_matrices

loss_module.LOSS_CHUNK_TOKENS = 24  # several chunks, the last one shorter
KINDS = ("naive", "chunked")
SEQ_LEN = 64
ZERO = {
    "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "zero_optimization": {
        "stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0, "overlap_comm": False,
    }, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}, "steps_per_print": 10**9,
}  # fmt: skip
Result = tuple[list[float], dict[str, torch.Tensor]]


def make_model(tied: bool) -> Any:
    config = AutoConfig.for_model(**{**SHAPE, "vocab_size": 256, "tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw_matrices(model, seed=1)
    return model


def micro_batch(step: int, rank: int) -> tuple[dict[str, Any], torch.Tensor]:
    ids = torch.randint(0, 256, (2, SEQ_LEN), generator=torch.Generator().manual_seed(10 * step + rank))
    positions = torch.cat([torch.arange(20), torch.arange(SEQ_LEN - 20)]).expand(2, -1).contiguous()
    labels = ids.masked_fill(positions < (7 if step or not rank else SEQ_LEN), -100)
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}, labels


def plainly(tied: bool, rank: int) -> Result:
    """Return this rank's losses, and the sum of the gradients of all ranks, by transformers' own logits."""
    model, losses = make_model(tied), []
    for step in range(2):
        for who in range(dist.get_world_size()):
            inputs, labels = micro_batch(step, who)
            loss = token_loss_sum(model(**inputs).logits, labels)
            loss.backward()
            losses += [float(loss)] if who == rank else []
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def under_zero(tied: bool, rank: int, kind: Any, *, compiled: bool = False) -> Result:
    held = HfDeepSpeedConfig(ZERO)
    model = make_model(tied)
    if compiled:
        kernels.compile_layers(model, SimpleNamespace(engine="deepspeed", zero_stage=3))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=ZERO)
    losses = []
    for step in range(2):
        loss = loss_of(engine, *micro_batch(step, rank), kind)
        engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
        losses.append(float(loss.detach()))
        if step:
            gradients = {name: safe_get_full_grad(parameter) for name, parameter in model.named_parameters()}
        engine.step()
    engine.eval()
    with torch.no_grad():  # after the step: other weights, but it goes through
        assert loss_of(engine, *micro_batch(0, rank), kind) >= 0
    engine.destroy()
    del held
    return losses, gradients


def under_fsdp(tied: bool, rank: int, kind: Any) -> Result:
    model = make_model(tied)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    losses = []
    for step in range(2):
        loss = loss_of(model, *micro_batch(step, rank), kind)
        (loss * dist.get_world_size()).backward()
        losses.append(float(loss.detach()))
    return losses, {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}


def check_that_compiled_layers_let_go(rank: int) -> None:
    """Of their gathered weights: the graph for the backward pass must not hold views of them."""
    held = HfDeepSpeedConfig(ZERO)
    model = make_model(tied=False)
    kernels.compile_layers(model, SimpleNamespace(engine="deepspeed", zero_stage=3))
    layer, storages = model.model.layers[0], []
    compute = layer.forward

    def watch(*args: Any, **options: Any) -> Any:
        result = compute(*args, **options)
        storages.extend(weakref.ref(parameter.untyped_storage()) for parameter in layer.parameters())
        return result

    layer.forward = watch
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=ZERO)
    loss = loss_of(engine, *micro_batch(1, rank), "chunked")
    gc.collect()
    assert [storage() for storage in storages] == [None] * 9
    engine.backward(loss)
    engine.destroy()
    del held


def compare(what: str, found: Result, expected: Result) -> None:
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(expected[0]), rtol=1e-6), (what, found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        difference = float((found[1][name] - gradient).norm() / gradient.norm())
        assert difference < 1e-5, (what, name, difference)


def main() -> None:
    set_environment(os.environ, "cpu")
    torch.set_num_threads(1)
    code = 0
    try:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed()
        rank = dist.get_rank()
        for tied in (False, True):
            expected = plainly(tied, rank)
            assert (expected[0][0] == 0) == (rank == 1), "rank 1 has no label in the first micro-step"
            for kind in KINDS:
                compare(f"fsdp {kind} tied={tied}", under_fsdp(tied, rank, kind), expected)
                compare(f"zero-3 {kind} tied={tied}", under_zero(tied, rank, kind), expected)
        # Inductor, which needs a C++ compiler, comes after what is tested here: graphs and hooks.
        torch.compile = partial(torch.compile, backend="aot_eager")
        expected = plainly(False, rank)
        compare("zero-3, compiled", under_zero(False, rank, "chunked", compiled=True), expected)
        check_that_compiled_layers_let_go(rank)
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as the worker leaves


if __name__ == "__main__":
    main()
