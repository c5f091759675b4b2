"""Liger's kernels and torch.compile: what is asked of them, and why they are refused where they cannot run."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("deepspeed")

from fullft_cluster.errors import UsageError  # noqa: E402
from fullft_cluster.train import attention, exits, kernels  # noqa: E402
from fullft_cluster.train.loss import loss_of  # noqa: E402

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def plan(**changes: Any) -> Any:
    values = {"loss": "chunked", "liger_kernel": False, "torch_compile": False, "precision": "fp32"}
    return SimpleNamespace(**{**values, "engine": "fsdp", "zero_stage": 3, **changes})


def make_model(kind: str = "llama") -> Any:
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def inputs() -> tuple[dict[str, Any], Any]:
    ids = torch.arange(24).view(2, 12)
    return {"input_ids": ids, "position_ids": torch.arange(12).expand(2, -1).contiguous(), "use_cache": False}, ids


def test_every_reason_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(UsageError) as refused:
        kernels.apply(make_model(), plan(loss="liger", liger_kernel=True, torch_compile=True), CPU)
    assert [problem.where for problem in refused.value.problems] == [
        "resources.loss", "resources.liger_kernel", "resources.torch_compile"
    ]  # fmt: skip
    assert "Liger's kernels are Triton's, for GPUs, and this is a CPU" in str(refused.value)
    assert "there is no C++ compiler" in str(refused.value)
    assert exits.classify(refused.value) == (93, "config")


def test_what_gpus_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "triton and liger_kernel cannot be imported" in str(kernels.no_liger(CUDA))
    assert "Triton cannot be imported" in str(kernels.no_compiler(CUDA))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    assert kernels.no_liger(CUDA) is None


def liger_definition(file: str, name: str, function: str) -> ast.FunctionDef:
    """Return a function of the installed liger-kernel, read: importing it needs Triton."""
    found = importlib.util.find_spec("liger_kernel")
    if found is None or found.origin is None:
        pytest.skip("liger-kernel is not installed")
    tree = ast.parse((Path(found.origin).parent / file).read_text())
    owner = next(node for node in ast.walk(tree) if getattr(node, "name", "") == name)
    if isinstance(owner, ast.FunctionDef):
        return owner
    return next(node for node in owner.body if getattr(node, "name", "") == function)


def test_ligers_loss_is_called_as_it_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments are the installed version's own, and a batch without labels never reaches its kernels."""
    file, name = "transformers/fused_linear_cross_entropy.py", "LigerFusedLinearCrossEntropyLoss"
    options = {argument.arg for argument in liger_definition(file, name, "__init__").args.args}
    operands = [argument.arg for argument in liger_definition(file, name, "forward").args.args]
    assert {"ignore_index", "reduction"} < options and operands[:4] == ["self", "lin_weight", "_input", "target"]
    calls = []

    class Fused:
        def __init__(self, **given: Any) -> None:
            assert set(given) <= options and given["reduction"] == "sum"

        def __call__(self, weight: Any, states: Any, targets: Any) -> Any:
            calls.append(len(targets))
            return torch.nn.functional.cross_entropy(states @ weight.T, targets, reduction="sum")

    module = ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Fused  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    model = make_model()
    given, labels = inputs()
    assert torch.allclose(loss_of(model, given, labels, "liger"), loss_of(model, given, labels, "naive"))
    assert loss_of(model, given, torch.full_like(labels, -100), "liger") == 0
    assert calls == [22]


def test_ligers_kernels_are_put_in_as_they_are_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms, rotation and MLP of this instance; the loss stays ours, of whichever kind."""
    options = {
        a.arg for a in liger_definition("transformers/monkey_patch.py", "apply_liger_kernel_to_llama", "").args.args
    }
    seen: list[dict[str, Any]] = []
    module = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}  # type: ignore[attr-defined]
    module._apply_liger_kernel_to_instance = lambda **given: seen.append(given)  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "no_liger", lambda device: None)
    model = make_model()
    kernels.apply(model, plan(liger_kernel=True), CUDA)
    assert set(seen[0]) <= options and seen[0].pop("model") is model
    assert {name for name, on in seen[0].items() if on} == {"rope", "rms_norm", "swiglu"}
    with pytest.raises(UsageError, match="none for models of type qwen2"):
        kernels.apply(make_model("qwen2"), plan(liger_kernel=True), CUDA)


def test_a_compiled_loss_is_compared_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(kernels.comm, "sum_over_ranks", lambda values, device: [2 * value for value in values])
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = make_model()
    kernels.apply(model, plan(torch_compile=True), CPU)
    assert all(isinstance(layer.forward, kernels.Compiled) for layer in model.model.layers)
    given, labels = inputs()
    check, calls = kernels.CompileCheck(plan(torch_compile=True)), []

    def compute() -> Any:
        calls.append(kernels.Compiled.on)
        return loss_of(model, given, labels, "chunked")

    check(compute).backward()
    check(compute)
    assert calls == [False, True, True]
    assert capsys.readouterr().out.count("torch.compile: first loss") == 1
    assert kernels.CompileCheck(plan())(compute).requires_grad and calls == [False, True, True, True]

    def drifting() -> Any:
        return torch.tensor(10.0 if kernels.Compiled.on else 9.99)

    with pytest.raises(UsageError, match=r"gives a loss of 20 where the uncompiled model gives 19\.98"):
        kernels.CompileCheck(plan(torch_compile=True))(drifting)
    assert kernels.CompileCheck(plan(torch_compile=True, precision="bf16"))(drifting) == 10


def test_what_cannot_be_compiled_is_refused() -> None:
    def broken(graph: Any, examples: Any) -> Any:
        raise ValueError("no such operator")

    compiled = torch.compile(torch.nn.functional.relu, backend=broken)

    def compute() -> Any:
        return (compiled if kernels.Compiled.on else torch.nn.functional.relu)(torch.ones(1)).sum()

    with pytest.raises(UsageError, match=r"resources\.torch_compile: cannot compile: .*no such operator"):
        kernels.CompileCheck(plan(torch_compile=True))(compute)


@pytest.mark.parametrize(
    ("device", "precision", "installed", "reason"),
    [
        (CPU, "bf16", True, "a CPU"),
        (CUDA, "fp32", True, "train.precision is fp32"),
        (CUDA, "bf16", False, "flash-attn"),
    ],
)
def test_flash_attention_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, device: Any, precision: str, installed: bool, reason: str
) -> None:
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    with pytest.raises(UsageError, match=reason):
        attention.attention_implementation(device, precision, "flash_attention_2")
    assert attention.attention_implementation(device, precision, "eager") == "eager"


def test_the_log_says_which_attention_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(rank: int, wanted: str | None) -> Any:
        resources = SimpleNamespace(attn_implementation=wanted)
        identity, config = SimpleNamespace(rank=rank), SimpleNamespace(resources=resources)
        return SimpleNamespace(identity=identity, config=config, plan=plan(precision="bf16"))

    for rank, wanted in ((0, None), (1, None), (0, "eager")):
        attention.choose_attention(job(rank, wanted), CPU)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    attention.choose_attention(job(0, None), CUDA)
    assert capsys.readouterr().out.splitlines() == [
        "attention: sdpa (flash_attention_2 has kernels for CUDA GPUs alone, and this is a CPU)",
        "attention: eager (as asked for)",
        "attention: flash_attention_2 (the fastest there is)",
    ]
