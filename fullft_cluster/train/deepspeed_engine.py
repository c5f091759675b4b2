"""ZeRO-1, 2 and 3 by DeepSpeed."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fullft_cluster.errors import Problem
from fullft_cluster.train import comm, kernels, universal
from fullft_cluster.train.attention import choose_attention, model_inputs
from fullft_cluster.train.data import Batch
from fullft_cluster.train.engine import own_shards
from fullft_cluster.train.exits import CheckpointFault
from fullft_cluster.train.loss import loss_of
from fullft_cluster.train.optimizer import parameter_groups, warmup_steps
from fullft_cluster.train.recompute import enable_recomputation
from fullft_cluster.train.setup import Job

MOST_CONVERTERS = 4
"""Processes that convert a checkpoint to another number of ranks, each with one rank's shard in memory: no more than
ranks load theirs at once."""


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
        self._world_size, self._local_world_size = job.identity.world_size, job.identity.local_world_size
        config = copy.deepcopy(job.deepspeed)
        self._stage = int(config["zero_optimization"]["stage"])
        # The directory of DeepSpeed's files within a checkpoint (its `tag`).
        self._shards = f"zero{self._stage}"
        # transformers keeps only a weak reference, and without it every rank would load the whole model.
        self._hf_config = HfDeepSpeedConfig(config)
        self._attention = choose_attention(job, device)
        self._loss = job.plan.loss
        model = make_model(job, self._attention)
        if job.plan.activation_checkpointing:
            enable_recomputation(model)
        kernels.apply(model, job.plan, device)
        self._checked = kernels.CompileCheck(job.plan)
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
        loss = self._checked(lambda: loss_of(self._engine, inputs, labels, self._loss))
        # ZeRO averages gradients over ranks, so the factor makes a sum of it; scale_wrt_gas would average micro-steps.
        self._engine.backward(loss * (self._world_size / labels_in_step), scale_wrt_gas=False)
        self._last_loss = loss.detach()
        # At each micro-step: DeepSpeed counts them and updates at the last one.
        self._engine.step()
        return self._last_loss

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        inputs, labels = model_inputs(batch, self.device, flatten=self._attention == "flash_attention_2")
        self._engine.eval()
        loss = loss_of(self._engine, inputs, labels, self._loss)
        self._engine.train()
        return loss.detach()

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
        shards = own_shards(directory, self._shards)
        if len(list(shards.glob("*optim_states.pt"))) == self._world_size:
            self._load(directory)
            return
        self._load_converted(directory)

    def _load_converted(self, directory: Path) -> None:
        """Load a checkpoint of another number of ranks, by way of DeepSpeed's universal checkpoint."""
        workers = min(self._local_world_size, MOST_CONVERTERS)
        converted = comm.on_rank_zero(partial(universal.convert, directory, self._shards, workers))
        optimizer = self._engine.optimizer.optimizer
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        # What load_checkpoint asks; in the configuration it would be said before a checkpoint is known.
        self._engine._config.load_universal_checkpoint = True
        try:
            self._load(converted)
        finally:
            self._engine._config.load_universal_checkpoint = False
        # Stage 3 gives all groups the settings of the first one, so that norms would decay from here on, and all their
        # states one and the same step counter, which each of them then moves on (stage3.py,
        # `load_hp_checkpoint_state_from_checkpoint_dir_stage3`).
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
        dist.barrier()
        comm.on_rank_zero(partial(shutil.rmtree, converted, ignore_errors=True))

    def _load(self, directory: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(directory), tag=self._shards)
        if path is None:
            raise CheckpointFault(Problem(str(directory), "DeepSpeed finds no checkpoint in it"))

    def model(self) -> Any:
        """See `Engine`."""
        return self._engine.module
