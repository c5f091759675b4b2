"""What transformers and torch keep of a forward pass is what the planner says, counted tensor by tensor."""

from __future__ import annotations

import json
import weakref
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

    def __init__(self, least: int) -> None:
        super().__init__()
        self._least, self._alive, self.most = least, {}, 0
        self._watched: dict[int, Any] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self._least:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive:
                    self._alive[key] = storage.nbytes()
                    self._watched[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key, None))
        self.most = max(self.most, sum(self._alive.values()))
        return result


@pytest.mark.parametrize("precision", DTYPES)
def test_logits_and_loss(tmp_path: Path, precision: Precision) -> None:
    """The most that exists at once of tensors of tokens x vocabulary, in forward and backward pass of our loss."""
    from fullft_cluster.train.loss import token_loss_sum

    model = make_model({"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}, precision)
    setup = make_setup(tmp_path, {"hidden_size": 16, "intermediate_size": 16}, precision)
    arguments, vocabulary = inputs(), TOKENS * SHAPE["vocab_size"]
    with Large(least=2 * vocabulary) as large:
        loss = token_loss_sum(model(**arguments).logits, arguments["input_ids"])
        loss.backward()
    assert large.most == activations.LOSS_BYTES["naive"] * vocabulary
    # Beside them is what the final norm keeps, which the planner adds.
    assert activations.logits_and_loss(setup) > large.most


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
