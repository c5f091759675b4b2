"""What is learnt does not depend on how it is computed; documents do not see each other; the export is the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_run import Training

from fullft_cluster.train.data import IGNORE, Ints, PackedData

pytestmark = pytest.mark.distributed

CUTS = ((2, 1), (1, 8))
"""(World size, micro-batch): the same 8 sequences an optimizer step, in 2 x 4 pieces or in one."""


def test_how_a_batch_is_cut_changes_nothing_but_rounding(new_training: Callable[..., Training]) -> None:
    """1 x 8 equals 8 x 1, with blocks of unlike label counts and a last batch that is not full."""
    results = []
    for world_size, micro in CUTS:
        # An odd number of blocks, so that the last batch ends in blocks of padding.
        training = new_training(
            f"cut-{world_size}-{micro}", world_size=world_size, micro_batch_size=micro, max_steps=None, rows=33
        )
        assert set(training.train()) == {0}, training.log()
        results.append(training)
    first, *others = results
    blocks = json.loads(first.run.data.read_text())["blocks"]
    assert blocks % 8, "the last batch is uneven"
    assert len(first.losses()) == -(-blocks // 8)
    for other in others:
        assert other.losses().keys() == first.losses().keys()
        for step, values in first.losses().items():
            # Loss, gradient norm and learning rate; float32 has 1e-7, and errors grow with the steps.
            assert np.allclose(values, other.losses()[step], rtol=2e-5), (step, values, other.losses()[step])
        assert all(np.allclose(first.weights()[n], w, atol=1e-5) for n, w in other.weights().items())


@pytest.fixture(scope="module")
def packed(reference: Training) -> PackedData:
    return PackedData(Path(json.loads(reference.run.data.read_text())["cache"]))


@pytest.fixture(scope="module")
def shared(packed: PackedData) -> Ints:
    """Blocks that hold several documents each."""
    everything = np.arange(len(packed))
    found = everything[(packed.batch(everything).position_ids == 0).sum(axis=1) > 1]
    assert len(found) >= 6, "the test needs blocks in which documents could see each other"
    return found[:6]


@pytest.mark.parametrize("flatten", [False, True])
def test_packed_documents_do_not_see_each_other(
    reference: Training, packed: PackedData, shared: Ints, flatten: bool
) -> None:
    """Logits and gradients of packed blocks equal those of each document alone, whatever the micro-batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from fullft_cluster.train.attention import model_inputs
    from fullft_cluster.train.loss import token_loss_sum

    model = AutoModelForCausalLM.from_pretrained(reference.run.export, dtype=torch.float32, attn_implementation="sdpa")
    batch = packed.batch(np.array([*shared, len(packed) - 1, -1]))
    inputs, labels = model_inputs(batch, torch.device("cpu"), flatten=flatten)
    logits = model(**inputs).logits
    loss = token_loss_sum(logits, labels)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    flat, documents, alone = logits.flatten(0, 1), 0, torch.zeros(())
    ids, firsts = batch.input_ids.reshape(-1), np.flatnonzero(batch.position_ids.reshape(-1) == 0)
    for begin, end in zip(firsts, [*firsts[1:], ids.size], strict=True):
        document = torch.from_numpy(ids[begin:end])[None]
        separate = model(input_ids=document, use_cache=False).logits
        assert torch.allclose(separate[0], flat[begin:end], atol=2e-5)
        if (batch.labels.reshape(-1)[begin + 1 : end] != IGNORE).any():
            alone = alone + token_loss_sum(separate, document)
            documents += 1
    assert documents > 10
    assert torch.allclose(alone, loss, rtol=1e-5)
    alone.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-4), name


def test_the_usual_mistakes_would_show(reference: Training, packed: PackedData, shared: Ints) -> None:
    """The test above can fail: with a mask of ones, documents do see each other."""
    import torch
    from transformers import AutoModelForCausalLM

    from fullft_cluster.train.attention import model_inputs

    model = AutoModelForCausalLM.from_pretrained(reference.run.export, dtype=torch.float32)
    inputs, _ = model_inputs(packed.batch(shared), torch.device("cpu"), flatten=False)
    right = model(**inputs).logits
    mask = torch.ones_like(inputs["input_ids"])
    assert not torch.allclose(right, model(**inputs, attention_mask=mask).logits, atol=1e-2)


def test_export_opens_and_generates(reference: Training) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(
        reference.run.export, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(reference.run.export)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    prompt = tokenizer("Report by", return_tensors="pt")
    out = model.generate(**{key: prompt[key] for key in ("input_ids", "attention_mask")}, max_new_tokens=8)
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith("Report by")
    config = json.loads((reference.run.export / "config.json").read_text())
    assert (config["eos_token_id"], config["use_cache"]) == (2, True)
    assert json.loads((reference.run.export / "fullft_cluster.json").read_text())["step"] == 40


def test_random_weights_tied_embeddings_and_no_recomputation(new_training: Callable[..., Training]) -> None:
    """A qwen2 with tied embeddings, made from its config alone."""
    from transformers import AutoModelForCausalLM

    training = new_training(
        max_steps=2, recompute=False, hf={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True},
    )  # fmt: skip
    training.config["weights"] = "random"
    training.write_files()
    assert training.train() == [0, 0], training.log()
    assert "lm_head.weight" not in training.weights()
    model, info = AutoModelForCausalLM.from_pretrained(training.run.export, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
