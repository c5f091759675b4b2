"""Full shard by torch's FSDP2 (`fully_shard`): parameters, gradients and AdamW's moments, each cut over all ranks.

A rank keeps fp32 master weights; in bf16 each layer is gathered, computes and is dropped in bf16, and gradients are
summed in fp32. https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from fullft_cluster.plan import Plan
from fullft_cluster.train import kernels
from fullft_cluster.train.attention import choose_attention, model_inputs
from fullft_cluster.train.data import Batch
from fullft_cluster.train.engine import own_shards
from fullft_cluster.train.fsdp_weights import empty_model, fill
from fullft_cluster.train.loss import loss_of
from fullft_cluster.train.optimizer import parameter_groups, warmup_steps
from fullft_cluster.train.recompute import enable_recomputation
from fullft_cluster.train.setup import Job
from fullft_cluster.train.weights import DTYPES
from fullft_cluster.units import GIB

SHARDS = "fsdp"
"""The directory of the engine's files within a checkpoint: torch.distributed.checkpoint's own format."""


class FsdpEngine:
    """FSDP2 with torch's AdamW, set up by the plan alone."""

    def __init__(self, job: Job, device: torch.device, total_steps: int) -> None:
        from transformers import get_cosine_schedule_with_warmup

        plan = job.plan
        self.device = device
        self._world_size = job.identity.world_size
        self._clip = plan.max_grad_norm
        self._accumulation = plan.gradient_accumulation_steps
        self._keeps_whole_gradients = keeps_whole_gradients(plan)
        self._micro_steps = 0
        self._attention, self._loss = choose_attention(job, device), plan.loss
        self._model, source = empty_model(job, self._attention)
        if plan.activation_checkpointing:
            enable_recomputation(self._model)
        kernels.apply(self._model, plan, device)
        self._checked = kernels.CompileCheck(plan)
        on_host = plan.offload == "parameters" and device.type == "cuda"
        shard(self._model, plan, on_host=on_host)
        fill(self._model, source, device, on_host=on_host)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._model, plan.weight_decay), lr=plan.learning_rate, betas=plan.adam_betas,
            eps=plan.adam_eps,
            # Without temporaries of the size of the shard, as the planner counts on.
            fused=device.type == "cuda",
        )  # fmt: skip
        warmup = warmup_steps(total_steps, plan.warmup_ratio)
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, warmup, total_steps)
        self._model.train()

    def micro_step(self, batch: Batch, labels_in_step: int) -> torch.Tensor:
        """See `Engine`."""
        self._micro_steps += 1
        if self._keeps_whole_gradients:
            self._model.set_requires_gradient_sync(self._micro_steps == self._accumulation)
        inputs, labels = model_inputs(batch, self.device, flatten=self._attention == "flash_attention_2")
        loss = self._checked(lambda: loss_of(self._model, inputs, labels, self._loss))
        # FSDP averages gradients over ranks, so the factor makes a sum of it.
        (loss * (self._world_size / labels_in_step)).backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        inputs, labels = model_inputs(batch, self.device, flatten=self._attention == "flash_attention_2")
        self._model.eval()
        loss = loss_of(self._model, inputs, labels, self._loss)
        self._model.train()
        self._model.reshard()  # the root stays gathered for a backward pass, and here none follows
        return loss.detach()

    def step(self) -> float:
        """See `Engine`."""
        self._micro_steps = 0
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return float(norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm)

    def learning_rate(self) -> float:
        """See `Engine`."""
        return float(self._schedule.get_last_lr()[0])

    def save(self, directory: Path) -> None:
        """See `Engine`."""
        dcp.save(self._state(), checkpoint_id=directory / SHARDS)

    def load(self, directory: Path) -> None:
        """See `Engine`."""
        shards = own_shards(directory, SHARDS)
        state = self._state()
        dcp.load(state, checkpoint_id=shards)
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"]
        )  # fmt: skip
        self._schedule.load_state_dict(state["schedule"])

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by the parameters' names in the model; tensors are this rank's shards."""
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optim": optimizer, "schedule": self._schedule.state_dict()}

    def model(self) -> Any:
        """See `Engine`."""
        return self._model


def keeps_whole_gradients(plan: Plan) -> bool:
    """Return whether gradients wait whole, in fp32, for the last micro-step, to be summed over ranks once a step.

    That saves a reduce-scatter a micro-step and costs 4 bytes a parameter on every GPU (27 GB for 7B), which the plan
    does not count; so only where it leaves as much.
    """
    spare = (plan.memory.gpu.capacity_gib - plan.memory.gpu.high_gib) * GIB
    return plan.gradient_accumulation_steps > 1 and spare > 4 * plan.model.parameters


def shard(model: Any, plan: Plan, *, on_host: bool) -> None:
    """Cut each decoder layer, and then what is outside of them, over all ranks."""
    low = DTYPES[plan.precision]
    precision = MixedPrecisionPolicy()
    if low != torch.float32:
        precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if on_host else OffloadPolicy()
    for layer in decoder_layers(model):
        fully_shard(layer, mp_policy=precision, offload_policy=offload)
    fully_shard(model, mp_policy=precision, offload_policy=offload)


def decoder_layers(model: Any) -> Any:
    """Return the list of a transformers model's decoder layers."""
    return model.base_model.layers
