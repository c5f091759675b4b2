"""What transformers and torch keep of a forward pass is what the planner says, counted tensor by tensor."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_run import SHAPE

from fullft_cluster.deepspeed_json import zero_optimization
from fullft_cluster.model import load_model
from fullft_cluster.plan import Precision
from fullft_cluster.planner import activations
from fullft_cluster.planner.setup import BYTES, Loss, Setup

pytestmark = pytest.mark.distributed  # one process, but with torch and transformers

SEQ_LEN, ROWS = 64, 2
TOKENS = SEQ_LEN * ROWS
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "llama-gqa": {"num_key_value_heads": 2, "intermediate_size": 176},
    "llama-mqa": {"num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_model(shape: dict[str, Any], precision: Precision) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**SHAPE, **shape})
    return AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision], attn_implementation="sdpa").train()


def make_setup(tmp_path: Path, shape: dict[str, Any], precision: Precision, loss: Loss = "naive") -> Setup:
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, **shape}))
    return Setup(
        model=load_model(str(tmp_path)), gpu="a100-80gb", gpus=8, nodes=1, micro_batch_size=ROWS, seq_len=SEQ_LEN,
        activation_checkpointing=False, precision=precision, offload="none", loss=loss,
        zero=zero_optimization(SHAPE["hidden_size"], "a100-80gb", "none"),
    )  # fmt: skip


def inputs() -> dict[str, Any]:
    ids = torch.arange(TOKENS).view(ROWS, SEQ_LEN)
    # One document a row: positions that restart within it make sdpa build a mask, and repeat keys and values.
    return {"input_ids": ids, "position_ids": torch.arange(SEQ_LEN).expand(ROWS, -1).contiguous(), "use_cache": False}


def saved_bytes(model: Any, arguments: dict[str, Any]) -> int:
    """Return the bytes of the storages that autograd keeps of a forward pass, weights and inputs left out."""
    own = [*model.parameters(), *model.buffers(), *(v for v in arguments.values() if isinstance(v, torch.Tensor))]
    known = {tensor.untyped_storage()._cdata for tensor in own}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model.model(**arguments).last_hidden_state
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_layer_keeps(tmp_path: Path, shape: str, precision: Precision) -> None:
    """Two layers keep more than one by what a layer keeps."""
    one, two = (
        saved_bytes(make_model({**SHAPES[shape], "num_hidden_layers": layers}, precision), inputs())
        for layers in (1, 2)
    )
    setup = make_setup(tmp_path, SHAPES[shape], precision)
    assert two - one == TOKENS * activations.layer_bytes_per_token(setup)


class Large(TorchDispatchMode):
    """Follows the storages of at least so many bytes while they live, and remembers the most at once."""

    def __init__(self, least: int, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._least, self._alive, self.most = least, {}, 0
        self._watched: dict[int, Any] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self._least:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive and key not in self._known:
                    self._alive[key] = storage.nbytes()
                    self._watched[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key, None))
        self.most = max(self.most, sum(self._alive.values()))
        return result


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("loss", "chunk"), [("naive", 1024), ("chunked", 1024), ("chunked", 48), ("chunked", 32)])
def test_logits_and_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, loss: Any, chunk: int
) -> None:
    """The most that our loss has at once, from the final norm on, forth and back: what the planner says, to the byte.

    Without layers, with a wide vocabulary; what is less than 2 KiB is left out (targets, positions, a norm's scales).
    """
    from fullft_cluster.train import loss as loss_module

    monkeypatch.setattr(loss_module, "LOSS_CHUNK_TOKENS", chunk)
    monkeypatch.setattr(activations, "LOSS_CHUNK_TOKENS", chunk)
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2}
    model = make_model(small, precision)
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(), 0
    arguments = inputs()
    with Large(least=2048, known=model.parameters()) as large:
        summed = loss_module.loss_of(model, arguments, arguments["input_ids"], loss)
        torch.autograd.grad(summed, [model.model.norm.weight, model.lm_head.weight])  # not the embedding's
    # The last position of a row predicts nothing: of it the norm alone has kept something.
    setup = replace(make_setup(tmp_path, small, precision, loss), seq_len=SEQ_LEN - 1)
    e, h = BYTES[precision], small["hidden_size"]
    expected = activations.logits_and_loss(setup) + ROWS * h * (activations.FP32 + e)
    expected -= setup.tokens * activations.NORM_STATISTICS_BYTES // 2
    # At the worst moment of the naive loss there is no gradient of the hidden states yet.
    assert large.most == expected - (setup.tokens * e * h if loss == "naive" else 0)


@pytest.mark.parametrize("precision", DTYPES)
def test_logits_that_stay_in_the_models_output(precision: Precision) -> None:
    """transformers' own loss: the output object holds the logits while the loss goes backward."""
    model = make_model({"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}, precision)
    arguments, vocabulary = inputs(), TOKENS * SHAPE["vocab_size"]
    with Large(least=2 * vocabulary) as large:
        output = model(**arguments, labels=arguments["input_ids"])
        output.loss.backward()
    per_logit = activations.LOSS_BYTES["in_output"] + BYTES[precision] * activations.LOSS_ELEMENTS["in_output"]
    assert large.most == per_logit * vocabulary
