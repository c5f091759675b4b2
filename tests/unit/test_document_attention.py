"""Attention one document at a time is attention under a block-diagonal mask: same logits, same gradients."""

from __future__ import annotations

import msgspec
import pytest
from example_plan import example_plan

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fullft_cluster.train import kernels  # noqa: E402
from fullft_cluster.train.document_attention import NAME, attend, document_lengths, use_document_attention  # noqa: E402

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def make(kind, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def packed():
    """Two rows of 24 tokens: documents of 7, 16 and 1 tokens, and one of 24."""
    positions = torch.stack([torch.cat([torch.arange(n) for n in (7, 16, 1)]), torch.arange(24)])
    return torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(5)), positions


def run(model, ids, positions):
    model.zero_grad()
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": 5}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_it_is_what_the_mask_makes(kind, changes):
    model, (ids, positions) = make(kind, **changes), packed()
    logits, gradients = run(model, ids, positions)
    use_document_attention(model)
    assert model.config._attn_implementation == NAME
    found, found_gradients = run(model, ids, positions)
    assert torch.allclose(found, logits, atol=1e-5)
    assert all(torch.allclose(found_gradients[name], gradient, atol=1e-6) for name, gradient in gradients.items())
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 64
    other, _ = run(model, changed, positions)
    assert not torch.equal(other[0, :7], found[0, :7])
    assert torch.equal(other[0, 7:], found[0, 7:]), "no document sees another one"
    assert "sdpa_documents" not in str(model.config.to_dict()), "nothing of it goes into an export"


def test_under_recomputation_gradients_are_the_same():
    model, (ids, positions) = make("llama"), packed()
    use_document_attention(model)
    model.train()
    _, gradients = run(model, ids, positions)
    model.gradient_checkpointing_enable()
    _, again = run(model, ids, positions)
    assert all(torch.allclose(again[name], gradient, atol=1e-7) for name, gradient in gradients.items())


@pytest.mark.parametrize(
    ("attention", "compiled", "expected"), [("sdpa", False, NAME), ("sdpa", True, "sdpa"), ("eager", False, "eager")]
)
def test_engines_use_it_on_cpus_for_sdpa_alone(monkeypatch, attention, compiled, expected):
    monkeypatch.setattr(kernels, "compile_layers", lambda model, plan: None)
    monkeypatch.setattr(kernels, "no_compiler", lambda device: None)
    model = make("llama")
    model.set_attn_implementation(attention)
    plan = msgspec.structs.replace(example_plan(), loss="chunked", liger_kernel=False, torch_compile=compiled)
    kernels.apply(model, plan, torch.device("cpu"))
    assert model.config._attn_implementation == expected


def test_lengths_of_documents():
    assert document_lengths(torch.tensor([0, 1, 2, 0, 1, 0, 0])) == [3, 2, 1, 1]
    assert document_lengths(torch.tensor([4, 5, 0, 1])) == [2, 2], "a row may begin in mid document"
    assert document_lengths(torch.arange(5)) == [5]


def test_what_it_cannot_tell_apart_it_refuses():
    state = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="position ids"):
        attend(None, state, state, state, None)
    with pytest.raises(ValueError, match="no mask"):
        attend(None, state, state, state, torch.ones(1, 1, 3, 3), position_ids=torch.arange(3)[None])
