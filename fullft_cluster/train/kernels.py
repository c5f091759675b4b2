"""Faster ways to compute the layers: Liger's kernels, and torch.compile, which is verified before it is trusted."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Plan, Precision
from fullft_cluster.train import comm
from fullft_cluster.train.document_attention import use_document_attention

COMPILED_DIFFERENCE: dict[Precision, float] = {"bf16": 5e-3, "fp32": 1e-4}
"""The most that the losses of a micro-batch may differ by, relatively, compiled and not. Fused kernels round less
often; a sum over thousands of tokens then differs by far less than one bf16 rounding (2^-8) of each."""


def apply(model: Any, plan: Plan, device: torch.device) -> None:
    """Put the kernels that the plan asks for into a model, after it is made and before it is sharded for training.

    Raises UsageError, with the reason, for what cannot run here.
    """
    problems = [
        Problem(key, f"cannot run here: {lacking}", fix)
        for key, wanted, lacking, fix in (
            ("resources.loss", plan.loss == "liger", no_liger(device), "Write chunked, which needs as little memory."),
            ("resources.liger_kernel", plan.liger_kernel, no_liger(device), "Leave it out."),
            ("resources.torch_compile", plan.torch_compile, no_compiler(device), "Leave it out."),
        )
        if wanted and lacking
    ]
    if problems:
        raise UsageError(problems)
    if plan.liger_kernel:
        _apply_liger(model)
    if plan.torch_compile:
        compile_layers(model, plan)
    elif device.type == "cpu" and model.config._attn_implementation == "sdpa":
        use_document_attention(model)  # its loop over documents is another graph in each batch, so not compiled


# --- Liger


def no_liger(device: torch.device) -> str | None:
    """Return why Liger's kernels cannot run here; None where they can. https://github.com/linkedin/Liger-Kernel"""
    if device.type != "cuda":
        return f"Liger's kernels are Triton's, for GPUs, and this is a {device.type.upper()}"
    missing = [name for name in ("triton", "liger_kernel") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} cannot be imported (pip install liger-kernel)" if missing else None


def _apply_liger(model: Any) -> None:
    """Replace norms, rotary embedding and MLP of this instance; the loss is `loss_of`'s affair."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        what = f"the installed liger-kernel has none for models of type {kind}"
        raise UsageError(Problem("resources.liger_kernel", what, "Leave it out, or install a newer one."))
    # Private by its name, but what transformers' own use_liger_kernel calls (transformers/integrations/liger.py).
    _apply_liger_kernel_to_instance(
        model=model, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )


# --- torch.compile


def no_compiler(device: torch.device) -> str | None:
    """Return why torch.compile's inductor cannot run here; None where it can. It needs Triton for a GPU, C++ for a CPU.

    https://docs.pytorch.org/docs/stable/torch.compiler_faq.html
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton cannot be imported"
    compilers = [os.environ.get("CXX", ""), os.environ.get("CC", ""), "g++", "clang++", "gcc", "clang", "cc"]
    found = any(name and shutil.which(name) for name in compilers)
    return None if found else "there is no C++ compiler (g++, clang++, or one named by CXX)"


class Compiled:
    """The forward of a layer, compiled; or as it was, while it is to be checked."""

    on = True
    """Of all layers of the process."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain, self._compiled = plain, torch.compile(plain)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Compute the layer."""
        return (self._compiled if Compiled.on else self.plain)(*args, **options)


def compile_layers(model: Any, plan: Plan) -> None:
    """Compile each decoder layer in place: they are alike, so one graph serves all.

    The forward alone, so that the engines' hooks stay outside of it. ZeRO-3 has hooks at every matrix; its layers
    become leaves, which are gathered as a whole (deepspeed/utils/z3_leaf_module.py).
    """
    layers = model.base_model.layers
    for layer in layers:
        layer.forward = Compiled(layer.forward)
    if plan.engine == "deepspeed" and plan.zero_stage == 3:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [type(layers[0])])


class CompileCheck:
    """Computes losses, the first one of an attempt twice where layers are compiled: it has to be what it was."""

    def __init__(self, plan: Plan) -> None:
        self._bound = COMPILED_DIFFERENCE[plan.precision]
        self._due = plan.torch_compile

    def __call__(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``compute`` does, the loss of a micro-batch with its graph. A collective, the first time.

        Raises UsageError on all ranks alike, with both numbers, where the compiled loss is another one; and where the
        model cannot be compiled.
        """
        if not self._due:
            return compute()
        self._due = False
        Compiled.on = False
        try:
            with torch.no_grad():
                plain = float(compute())
        finally:
            Compiled.on = True
        try:
            loss = compute()
        except torch._dynamo.exc.TorchDynamoException as error:  # its graphs, and what inductor makes of them
            what = f"cannot compile: {' '.join(str(error).split()[:40])}"
            raise UsageError(Problem("resources.torch_compile", what, "Leave it out.")) from error
        total = comm.sum_over_ranks([plain, float(loss.detach())], loss.device)
        if not abs(total[1] - total[0]) <= self._bound * abs(total[0]):
            what = f"gives a loss of {total[1]:.6g} where the uncompiled model gives {total[0]:.6g} (over all ranks)"
            raise UsageError(Problem("resources.torch_compile", what, "Leave it out."))
        if dist.get_rank() == 0:
            print(f"torch.compile: first loss {total[1]:.6g}, uncompiled {total[0]:.6g} (over all ranks)", flush=True)
        return loss
