"""However the loss is computed, it is the same loss with the same gradients: alone, under ZeRO-3 and under FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_run import SHAPE, Training, run_ranks
from transformers import AutoConfig, AutoModelForCausalLM

from fullft_cluster.train import loss as loss_module
from fullft_cluster.train.attention import model_inputs
from fullft_cluster.train.data import IGNORE, Batch
from fullft_cluster.train.kernels import no_compiler
from fullft_cluster.train.loss import loss_of, token_loss_sum

pytestmark = pytest.mark.distributed  # the first two tests are one process, but with torch and transformers

DOCUMENTS = ((23, 5, 36), (1, 40, 23))
"""Lengths of the documents in each row of a packed batch."""


def make_model(attention: str = "sdpa", **shape: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(**{**SHAPE, "vocab_size": 300, **shape})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).train()


def make_batch() -> Batch:
    ids = np.random.default_rng(5).integers(0, 300, (len(DOCUMENTS), sum(DOCUMENTS[0])))
    positions = np.array([np.concatenate([np.arange(length) for length in row]) for row in DOCUMENTS])
    return Batch(input_ids=ids, labels=np.where(positions < 4, IGNORE, ids), position_ids=positions)


def test_under_zero3_and_fsdp(tmp_path: Path) -> None:
    """Two ranks, tied and untied, with a micro-step in which one rank has nothing to predict; compiled under ZeRO-3."""
    run_ranks(tmp_path, Path(__file__).with_name("loss_probe.py"), [])


@pytest.mark.parametrize("tied", [False, True])
def test_only_what_has_a_label_is_computed(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    """Loss and every gradient are those of all logits; the model without targets is what it was."""
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_TOKENS", 24)
    model = make_model(tie_word_embeddings=tied)
    inputs, labels = model_inputs(make_batch(), torch.device("cpu"), flatten=False)
    logits = model(**inputs).logits
    expected = token_loss_sum(logits, labels)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for kind in ("naive", "chunked"):
        model.zero_grad()
        loss = loss_of(model, inputs, labels, kind)
        (2 * loss).backward()
        assert torch.allclose(loss, expected, rtol=1e-6)
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, 2 * gradients[name], rtol=1e-4, atol=1e-4), (kind, name)
        with torch.no_grad():
            assert torch.allclose(loss_of(model, inputs, labels, kind), expected, rtol=1e-6)
        with pytest.raises(RuntimeError):  # the gradients are scaled in place: once
            loss.backward()
    assert set(seen) == {int((labels[:, 1:] != IGNORE).sum())}
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("flatten", [False, True])
def test_packed_logits_are_those_of_each_document_alone(attention: str, kind: str, flatten: bool) -> None:
    model = make_model(attention, model_type=kind, architectures=None)
    assert model.config._attn_implementation == attention
    batch = make_batch()
    inputs, _ = model_inputs(batch, torch.device("cpu"), flatten=flatten)
    packed = model(**inputs).logits.flatten(0, 1)
    ids, begin = torch.from_numpy(batch.input_ids).flatten(), 0
    for length in (length for row in DOCUMENTS for length in row):
        alone = model(input_ids=ids[None, begin : begin + length], use_cache=False).logits[0]
        assert torch.allclose(alone, packed[begin : begin + length], atol=1e-5)
        begin += length
    assert begin == ids.numel()
    seeing_all = model(input_ids=ids[None], use_cache=False).logits[0]
    assert not torch.allclose(seeing_all, packed, atol=1e-2), "the test can fail"


WRONG_COMPILER = """
import torch

def wrong(function, **options):
    def computed(*args, **kwargs):
        return 1.5 * function(*args, **kwargs)
    return computed

torch.compile = wrong
"""


def test_a_compiled_model_with_another_loss_is_refused(tmp_path: Path, new_training: Callable[..., Training]) -> None:
    training = new_training(max_steps=2)
    training.config["resources"]["torch_compile"] = True
    training.write_files()
    (tmp_path / "sitecustomize.py").write_text(WRONG_COMPILER)
    assert training.train(sitecustomize=tmp_path) == [93, 93], training.log()
    for rank in range(2):
        report = training.report(rank)
        assert (report["kind"], report["step"]) == ("config", 0)
        assert "resources.torch_compile: gives a loss of" in report["message"]
        assert "where the uncompiled model gives" in report["message"]


@pytest.mark.nightly
@pytest.mark.skipif(no_compiler(torch.device("cpu")) is not None, reason="there is no C++ compiler")
@pytest.mark.parametrize("engine", ["deepspeed", "fsdp"])
def test_a_compiled_run_learns_the_same(new_training: Callable[..., Training], engine: str) -> None:
    """By inductor, with activations recomputed."""
    losses = []
    for compiled in (False, True):
        training = new_training(f"run-{compiled}", max_steps=4)
        training.config["resources"] |= {"torch_compile": compiled, "engine": engine}
        training.write_files()
        assert training.train() == [0, 0], training.log()
        losses.append(training.losses())
    assert all(np.allclose(losses[0][step], losses[1][step], rtol=1e-4) for step in range(1, 5)), losses
