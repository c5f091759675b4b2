"""A tokenizer with more tokens than the model: the embeddings grow, the same under ZeRO-3 as in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from training_run import SHAPE, TOKENIZER, Training

from fullft_cluster.train.export import export_checkpoint

pytestmark = pytest.mark.distributed

NEW = "<|end_of_turn|>"


def test_tied_embeddings_grow_under_zero3(new_training: Callable[..., Training], tmp_path: Path) -> None:
    """Two ranks, each of which has a part of the old rows. The first step has learning rate 0 and changes nothing."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fullft_cluster.train.weights import grow_vocabulary

    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    tokenizer.add_tokens([NEW], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(NEW) == 2048
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    training = new_training(
        max_steps=2, hf={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
    )
    text = Path(training.config["data"]["train"])
    rows = [json.loads(line)["text"] + NEW for line in text.read_text().splitlines()]
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    training.config["tokenizer"] = str(tmp_path / "tokenizer")
    training.config["output"]["save_steps"] = 1
    training.write_files()
    training.prepare()
    assert training.train() == [0, 0], training.log()
    assert "from 2048 to 2112 rows" in training.log()

    plain = AutoModelForCausalLM.from_pretrained(training.config["model"], dtype=torch.float32)
    old = plain.get_input_embeddings().weight.detach().clone()
    grow_vocabulary(plain, 2048, 2112)
    first = load_file(
        export_checkpoint(training.run, training.run.checkpoints / "step-1", tmp_path / "first") / "model.safetensors"
    )
    assert first.keys() == {name for name, _ in plain.named_parameters()}
    assert all(first[name].equal(parameter) for name, parameter in plain.named_parameters())
    rows_now = first["model.embed_tokens.weight"]
    assert rows_now[:2048].equal(old)
    assert torch.allclose(rows_now[2048:], old.mean(0), atol=1e-7)

    trained = AutoModelForCausalLM.from_pretrained(training.run.export)
    assert trained.config.vocab_size == 2112
    assert trained.get_output_embeddings().weight is trained.get_input_embeddings().weight
    assert not trained.get_input_embeddings().weight[2048].equal(rows_now[2048]), "the new token was learnt"
    again = AutoTokenizer.from_pretrained(training.run.export)
    assert again(f"Report{NEW}")["input_ids"][-1] == 2048


def test_the_output_layer_of_untied_embeddings_grows_too() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fullft_cluster.train.weights import grow_vocabulary

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SHAPE, "tie_word_embeddings": False}))
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    before = [layer.weight.detach().clone() for layer in layers]
    rows = SHAPE["vocab_size"]
    grow_vocabulary(model, rows, rows + 64)
    assert model.config.vocab_size == rows + 64
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    assert layers[0].weight is not layers[1].weight
    for layer, old in zip(layers, before, strict=True):
        assert layer.weight.shape == (rows + 64, SHAPE["hidden_size"])
        assert layer.weight[:rows].equal(old)
        assert torch.allclose(layer.weight[rows:], old.mean(0), atol=1e-7)
