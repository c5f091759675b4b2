"""Gradients, optimizer, schedule and evaluation of each engine against plain torch, on ragged rows; NaN is not saved.

Two ranks with 4 micro-batches of 1 row each, or 1 of 4; the reference is one process with one batch of all 8 rows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from training_run import SHAPE, Shape, Training, random_weights, run_ranks

pytestmark = pytest.mark.distributed

ENGINES = {
    "steps-zero1": ("deepspeed", 1, 1), "steps-zero2": ("deepspeed", 2, 1), "steps-zero3": ("deepspeed", 3, 1),
    "steps-zero3-at-once": ("deepspeed", 3, 4), "steps-fsdp": ("fsdp", None, 1),
}  # fmt: skip
"""(Engine, ZeRO stage, micro-batch)."""
IN_BF16 = {
    "steps-bf16-zero1": ("deepspeed", 1, 1), "steps-bf16-zero3": ("deepspeed", 3, 1),
    "steps-bf16-fsdp": ("fsdp", None, 1),
}  # fmt: skip
POISONED = {
    "poison-zero1": ("deepspeed", 1, 2), "poison-zero2": ("deepspeed", 2, 2), "poison-zero3": ("deepspeed", 3, 2),
    "poison-fsdp": ("fsdp", None, 2),
}  # fmt: skip
DECAY, CLIP, RATE = 0.5, 0.1, 1e-2
"""So large, or small, that norms and biases that decay, or gradients that are not clipped, would show."""
MODEL = {
    **SHAPE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 4,
}  # fmt: skip
"""It has biases."""


def with_biases(cache: Path) -> Path:
    """Return a model whose biases and norms are not what they are initialised to."""
    import torch
    from transformers import AutoModelForCausalLM

    path = random_weights(cache, MODEL)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Training]:
    """All runs, by one pair of processes: their imports are the slow part."""
    root = tmp_path_factory.mktemp("gradients")
    model = str(with_biases(cache))
    first = Training(root / "first", cache, Shape(max_steps=4, rows=40))
    first.prepare()
    made = {}
    for name, (engine, stage, micro) in (ENGINES | IN_BF16 | POISONED).items():
        training = made[name] = first.copy(root / name)
        training.config["resources"] |= {"engine": engine, "micro_batch_size": micro}
        if stage:
            training.config["resources"]["zero_stage"] = stage
        if name not in ENGINES:
            training.config["train"]["precision"] = "bf16"
        if name not in POISONED:
            training.config |= {"model": model, "weights": model}
            training.config["train"] |= {
                "weight_decay": DECAY, "max_grad_norm": CLIP, "learning_rate": RATE, "warmup_ratio": 0.25,
            }  # fmt: skip
        else:
            training.config["output"]["save_steps"] = 1
        training.write_files()
        training.run.update_run(attempt=1)
    run_ranks(root, Path(__file__).with_name("gradients_probe.py"), [str(one.run.path) for one in made.values()])
    return made


@pytest.fixture(scope="module")
def reference(runs: dict[str, Training]) -> dict[str, Any]:
    """What plain torch computes: the formulas written out, one process, one batch of all rows."""
    import torch
    import torch.nn.functional as F
    from gradients_probe import EVALUATED_BEFORE, HELD_OUT, STEPS, ragged
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(runs["steps-zero1"].config["weights"], dtype=torch.float32)
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)

    def row_sums(batch: Any) -> list[Any]:
        """Return (sum of the token losses, number of labels) of each row alone."""
        found = []
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0, :-1]
            wanted = torch.from_numpy(labels)[1:]
            loss = F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
            found.append((loss, int((wanted != -100).sum())))
        return found

    made: dict[str, Any] = {"norms": [], "rates": [], "losses": [], "gradients": [], "means": []}
    for step in range(STEPS):
        if step == EVALUATED_BEFORE:
            held_out = row_sums(ragged(99, HELD_OUT))
            made["evaluation"] = float(sum(loss.detach() for loss, _ in held_out)) / sum(count for _, count in held_out)
        rate = RATE * (step if step < 1 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = row_sums(ragged(step))
        wrong = sum(loss / count for loss, count in rows) / len(rows)
        made["means"].append(torch.autograd.grad(wrong, list(model.parameters()), retain_graph=True))
        loss = sum(loss for loss, _ in rows) / sum(count for _, count in rows)
        optimizer.zero_grad()
        loss.backward()
        made["gradients"].append({name: p.grad.clone() for name, p in model.named_parameters()})
        made["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        made["losses"].append(float(loss.detach()))
        made["rates"].append(rate)
    made["weights"] = {name: p.detach() for name, p in model.named_parameters()}
    return made


def found(runs: dict[str, Training], name: str) -> dict[str, Any]:
    import torch

    result: dict[str, Any] = torch.load(runs[name].run.path / "found.pt", weights_only=True)
    return result


def away(got: Any, want: Any) -> float:
    """Return how far a tensor is from another, relative to its length."""
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", ENGINES)
def test_gradients_are_those_of_one_batch(runs: dict[str, Training], reference: dict[str, Any], name: str) -> None:
    got = found(runs, name)
    assert got["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    assert got["norms"] == pytest.approx(reference["norms"], rel=1e-4)
    for step, (mine, theirs) in enumerate(zip(got["gradients"], reference["gradients"], strict=True)):
        assert mine.keys() == theirs.keys()
        for parameter, gradient in theirs.items():
            assert away(mine[parameter], gradient) < 1e-3, (step, parameter)


def test_the_mean_of_the_rows_means_would_show(reference: dict[str, Any]) -> None:
    """The usual mistake: each micro-batch's own mean, divided by their number."""
    for wrong, right in zip(reference["means"], reference["gradients"], strict=True):
        for mistaken, (parameter, gradient) in zip(wrong, right.items(), strict=True):
            assert away(mistaken, gradient) > 0.05, parameter


@pytest.mark.parametrize("name", ENGINES)
def test_adamw_clipping_decay_and_schedule(runs: dict[str, Training], reference: dict[str, Any], name: str) -> None:
    """Four steps end in the weights of torch's AdamW, which decays matrices alone, after clipping, along a cosine."""
    got = found(runs, name)
    assert got["rates"] == pytest.approx(reference["rates"])
    assert max(reference["norms"]) > CLIP
    for parameter, weight in reference["weights"].items():
        assert away(got["weights"][parameter], weight) < 1e-4, parameter


@pytest.mark.parametrize("name", ENGINES)
def test_evaluation_by_any_batch_size(runs: dict[str, Training], reference: dict[str, Any], name: str) -> None:
    """Five rows on two ranks, by 1, 2 and 3 at a time; the training around it is not disturbed (the tests above)."""
    assert found(runs, name)["evaluations"] == pytest.approx([reference["evaluation"]] * 3, rel=1e-5)


@pytest.mark.parametrize("name", IN_BF16)
def test_bf16_has_fp32_masters(runs: dict[str, Training], reference: dict[str, Any], name: str) -> None:
    """The same is learnt but for rounding, and weights are updated in fp32: most of them are no numbers of bf16."""
    import torch

    got = found(runs, name)
    assert got["losses"] == pytest.approx(reference["losses"], rel=1e-3)
    assert got["norms"] == pytest.approx(reference["norms"], rel=5e-3)
    assert got["evaluations"] == pytest.approx([reference["evaluation"]] * 3, rel=1e-3)
    for parameter, weight in reference["weights"].items():
        mine = got["weights"][parameter]
        assert away(mine, weight) < 0.15, parameter
        assert mine.dtype == torch.float32
        assert (mine != mine.bfloat16().float()).float().mean() > 0.9, parameter


@pytest.mark.parametrize("name", ENGINES)
def test_who_loads_the_whole_model(runs: dict[str, Training], reference: dict[str, Any], name: str) -> None:
    """No rank under ZeRO-3, unless transformers does not know of it while it loads; under FSDP rank 0 alone."""
    size = sum(weight.numel() for weight in reference["weights"].values())
    expected = {"zero1": [size, size], "zero2": [size, size], "zero3": [0, 0], "fsdp": [size, 0]}
    assert found(runs, name)["loaded"] == expected[name.split("-")[1]]


@pytest.mark.parametrize("name", POISONED)
def test_no_checkpoint_of_a_step_that_is_not_finite(runs: dict[str, Training], name: str) -> None:
    """In bf16: the loss is finite, but not the gradient of one micro-batch on one rank."""
    training = runs[name]
    for rank in range(2):
        report = json.loads((training.run.path / f"said-{rank}.json").read_bytes())
        assert report["committed"] == 2
        assert "at step 3, in the blocks" in report["said"], report
    assert sorted(path.name for path in training.run.checkpoints.iterdir()) == ["step-1", "step-2"]
    assert not training.run.export.exists()
