"""What computes attention, loss and the layers' small operations: what the user wants, else what the GPUs can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Attention, Loss, Quantity
from fullft_cluster.planner import activations
from fullft_cluster.planner.setup import Setup
from fullft_cluster.units import GIB, in_gib

DEFAULT_LOSS: Loss = "chunked"
"""On CPUs too: nothing is computed twice, and logits that fit a cache are faster than logits that do not."""


def loss_kind(config: Config) -> Loss:
    """Return how the loss is computed."""
    return config.resources.loss or DEFAULT_LOSS


def can_flash(config: Config, gpu: str) -> bool:
    """Return whether FlashAttention 2 has kernels for it: https://github.com/Dao-AILab/flash-attention."""
    return gpu != CPU and config.train.precision == "bf16"


def attention_kind(config: Config, gpu: str) -> Attention:
    """Return the attention that is expected on the nodes: whether flash-attn is there is not seen from here."""
    return config.resources.attn_implementation or ("flash_attention_2" if can_flash(config, gpu) else "sdpa")


def contradictions(config: Config, gpu: str) -> Iterator[Problem]:
    """Yield what was asked for and cannot run on these GPUs."""
    wanted, precision = config.resources, config.train.precision
    if wanted.attn_implementation == "flash_attention_2" and not can_flash(config, gpu):
        lacks = f"16-bit numbers alone, and train.precision is {precision}"
        lacks = "CUDA GPUs alone, and these are CPUs" if gpu == CPU else lacks
        what = f"flash_attention_2 has kernels for {lacks}"
        yield Problem("resources.attn_implementation", what, "Write sdpa, or leave it out.")
    if gpu == CPU and wanted.loss == "liger":
        what = "liger is a Triton kernel for GPUs, and this is a cluster of CPUs"
        yield Problem("resources.loss", what, "Write chunked, which needs as little memory.")
    if gpu == CPU and wanted.liger_kernel:
        what = "Liger's kernels are Triton's, for GPUs, and this is a cluster of CPUs"
        yield Problem("resources.liger_kernel", what, "Leave it out.")


def why(setup: Setup) -> Iterator[str]:
    """Yield the sentences of the plan on loss, attention and the layers' kernels."""
    if setup.gpu == CPU:
        return
    chosen, naive = (activations.logits(one) / GIB for one in (setup, replace(setup, loss="naive")))
    if chosen < naive:
        how = "in chunks" if setup.loss == "chunked" else "by Liger's kernel"
        yield f"The loss is computed {how}: its logits take {in_gib(chosen)} at the worst, all at once {in_gib(naive)}."
    yield {
        "flash_attention_2": "FlashAttention 2 is expected on the nodes; where it is not installed, PyTorch's own "
        "attention (sdpa) is used: slower, and with a mask in memory.",
        "sdpa": "PyTorch's own attention (sdpa) keeps a mask for packed rows and computes both halves of the square.",
        "eager": "Eager attention keeps the probabilities of every pair of tokens, and takes the time of writing them.",
    }[setup.attention]
    if setup.liger_kernel or setup.torch_compile:
        names = [("Liger's kernels", setup.liger_kernel), ("torch.compile", setup.torch_compile)]
        used = " and ".join(name for name, on in names if on)
        yield f"With {used} fewer passes over memory are forecast: by counting, not from runs, so within wider bounds."


def quantities(config: Config, setup: Setup) -> Iterator[Quantity]:
    """Yield what was chosen, with its rule and where it is from."""
    wanted = config.resources
    yield Quantity(
        name="loss", value=setup.loss, unit="", formula=f"{DEFAULT_LOSS} unless resources.loss says another",
        source="train/loss.py; https://arxiv.org/abs/2410.10989, section 3.2",
        origin="given" if wanted.loss else "default",
    )  # fmt: skip
    yield Quantity(
        name="attn_implementation", value=setup.attention, unit="",
        formula="flash_attention_2 for bf16 on GPUs, else sdpa; what is not installed on the nodes is passed over",
        source="https://github.com/Dao-AILab/flash-attention",
        origin="given" if wanted.attn_implementation else "default",
    )  # fmt: skip
    for name, on, source in (
        ("liger_kernel", setup.liger_kernel, "https://github.com/linkedin/Liger-Kernel"),
        ("torch_compile", setup.torch_compile, "train/kernels.py"),
    ):
        yield Quantity(
            name=name, value="yes" if on else "no", unit="", formula=f"resources.{name}", source=source,
            origin="given" if on else "default",
        )  # fmt: skip
