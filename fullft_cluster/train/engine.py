"""One engine: the model in pieces over all ranks, with its optimizer and schedule. Today DeepSpeed's ZeRO, 1 to 3.

The loop knows only `Engine`. Loss and gradients are those of the *whole* global batch: the sum of all token losses over
the number of its labels, however the batch is cut into micro-steps and ranks (averaging the means of micro-batches
weighs the tokens of short ones more; https://unsloth.ai/blog/gradient).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.hardware import CPU
from fullft_cluster.plan import Plan
from fullft_cluster.train.data import Batch
from fullft_cluster.train.exits import CheckpointFault
from fullft_cluster.train.setup import Job


class Engine(Protocol):
    """What the loop needs of an engine. All methods are collectives."""

    device: torch.device

    def micro_step(self, batch: Batch, labels_in_step: int) -> torch.Tensor:
        """Run forward and backward for one micro-batch; return the sum of its token losses (a detached scalar)."""

    def step(self) -> float:
        """Clip, update and zero the gradients, move the schedule on; return the gradient norm before clipping."""

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""

    def save(self, directory: Path) -> None:
        """Write this rank's shards of weights, optimizer and schedule."""

    def load(self, directory: Path) -> None:
        """Bring back what `save` wrote at the same world size. Raises CheckpointFault."""

    def consolidate(self) -> dict[str, torch.Tensor] | None:
        """Return all weights on the CPU of rank 0, None elsewhere."""

    def model(self) -> Any:
        """Return the transformers model (its parameters may be sharded)."""


def compute_device(plan: Plan, local_rank: int) -> torch.device:
    """Return this process's device, made the current one: cuda:LOCAL_RANK, or cpu.

    Raises RunFailedError where the plan's GPUs are out of reach: a driver or node at fault, not a wish for CPUs.
    """
    if plan.gpu != CPU and not torch.cuda.is_available():
        if torch.version.cuda or torch.version.hip:
            problem = Problem("torch", f"sees no GPU, but the plan is for {plan.gpu}", "Look at the node's driver.")
            raise RunFailedError(problem)
        print(f"This torch is built without CUDA: a plan for {plan.gpu} runs on CPUs.", flush=True)
    if plan.gpu == CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def attention_implementation(device: torch.device, precision: str) -> str:
    """Return `flash_attention_2` where it can be imported on CUDA, else `sdpa`; both keep packed documents apart.

    FlashAttention's kernels are for 16-bit numbers (https://github.com/Dao-AILab/flash-attention), so fp32 takes sdpa.
    """
    from transformers.utils import is_flash_attn_2_available

    possible = device.type == "cuda" and precision == "bf16"
    return "flash_attention_2" if possible and is_flash_attn_2_available() else "sdpa"


def warmup_steps(total_steps: int, ratio: float) -> int:
    """Return the steps of warm-up: transformers' rounding (up), but never all steps, or nothing would be learnt."""
    return min(math.ceil(total_steps * ratio), max(total_steps - 1, 0))


def model_inputs(batch: Batch, device: torch.device, *, flatten: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the model's arguments and the labels, shape (B, S), or (1, B*S) where `flatten`.

    Documents are kept apart by position ids that restart. That holds only without an attention mask and without a cache
    (transformers/masking_utils.py, `find_packed_sequence_indices`); FlashAttention's varlen kernels are used only for a
    single row (modeling_flash_attention_utils.py, `_is_packed_sequence`), so the rows are laid end to end for it.
    """
    ids, labels, positions = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.input_ids, batch.labels, batch.position_ids)
    )
    if flatten:
        ids, labels, positions = (tensor.view(1, -1) for tensor in (ids, labels, positions))
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}, labels


def token_loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) of all labelled tokens, in float32.

    Position t predicts label t+1. The first token of a row has no label, so rows laid end to end do not mix.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), reduction="sum")


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices decay, norms and biases (one dimension) do not.

    Under zero.Init a parameter's own shape is empty; `ds_shape` is the true one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


class DeepSpeedEngine:
    """ZeRO by deepspeed.initialize, set up by the run's deepspeed.json alone.

    Stage 3 shards the model as it is made; below, every rank makes the whole of it.
    """

    def __init__(self, job: Job, device: torch.device, total_steps: int) -> None:
        import deepspeed
        from transformers import get_cosine_schedule_with_warmup
        from transformers.integrations import HfDeepSpeedConfig

        from fullft_cluster.train.weights import make_model

        self.device = device
        self._world_size = job.identity.world_size
        config = copy.deepcopy(job.deepspeed)
        self._stage = int(config["zero_optimization"]["stage"])
        # The directory of DeepSpeed's files within a checkpoint (its `tag`).
        self._shards = f"zero{self._stage}"
        # transformers keeps only a weak reference, and without it every rank would load the whole model.
        self._hf_config = HfDeepSpeedConfig(config)
        self._attention = attention_implementation(device, job.plan.precision)
        if job.identity.rank == 0:
            print(f"attention: {self._attention}", flush=True)
        model = make_model(job, self._attention)
        if job.plan.activation_checkpointing:
            enable_recomputation(model)
        warmup = warmup_steps(total_steps, job.plan.warmup_ratio)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, job.plan.weight_decay),
            lr_scheduler=lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, total_steps),
            config=config,
        )
        self._engine.train()

    def micro_step(self, batch: Batch, labels_in_step: int) -> torch.Tensor:
        """See `Engine`."""
        inputs, labels = model_inputs(batch, self.device, flatten=self._attention == "flash_attention_2")
        loss = token_loss_sum(self._engine(**inputs).logits, labels)
        # ZeRO averages gradients over ranks, so the factor makes a sum of it; scale_wrt_gas would average micro-steps.
        self._engine.backward(loss * (self._world_size / labels_in_step), scale_wrt_gas=False)
        self._last_loss = loss.detach()
        # At each micro-step: DeepSpeed counts them and updates at the last one.
        self._engine.step()
        return self._last_loss

    def step(self) -> float:
        """See `Engine`."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def learning_rate(self) -> float:
        """See `Engine`."""
        return float(self._engine.get_lr()[0])

    def save(self, directory: Path) -> None:
        """See `Engine`."""
        self._engine.save_checkpoint(str(directory), tag=self._shards, save_latest=False)

    def load(self, directory: Path) -> None:
        """See `Engine`."""
        if not (directory / self._shards).is_dir():
            what = f"holds no {self._shards}/: it was not written under ZeRO-{self._stage}"
            raise CheckpointFault(Problem(str(directory), what, "Resume with the sharding of before."))
        path, _ = self._engine.load_checkpoint(str(directory), tag=self._shards)
        if path is None:
            raise CheckpointFault(Problem(str(directory), "DeepSpeed finds no checkpoint in it"))

    def consolidate(self) -> dict[str, torch.Tensor] | None:
        """See `Engine`."""
        if self._stage < 3:
            return whole_weights(self._engine.module) if dist.get_rank() == 0 else None
        # Private by its name, but what transformers' and accelerate's own saving calls; it is the only way that
        # handles tied embeddings (zero_to_fp32.py --safe_serialization does not).
        state: dict[str, torch.Tensor] | None = self._engine._zero3_consolidated_16bit_state_dict()
        return state

    def model(self) -> Any:
        """See `Engine`."""
        return self._engine.module


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies on the CPU of weights that are not sharded; tied ones stay one tensor.

    ZeRO-1 and 2 make them views of flat buffers, which save_pretrained would take for weights shared by mistake.
    """
    copies: dict[int, torch.Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
        weights[name] = copies[id(tensor)]
    return weights


def enable_recomputation(model: Any) -> None:
    """Recompute each layer's activations in the backward pass."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers >= 5.2
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
