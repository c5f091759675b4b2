"""The noun Plan: what will be learnt, on which GPUs, in how much memory. Plain data; `planner` makes it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Origin = Literal["given", "derived", "default", "measured"]
Precision = Literal["bf16", "fp32"]
Offload = Literal["none", "optimizer"]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the frozen nouns."""


class Quantity(Frozen, frozen=True):
    """One number of a plan, with what it takes to check it by hand."""

    name: str
    value: float | int | str
    unit: str
    formula: str
    """As written for people, with the numbers' names."""
    source: str
    """Where the formula or constant comes from: a link, a file, a measurement."""
    origin: Origin


class PlannedModel(Frozen, frozen=True):
    """The architecture that the plan is about."""

    name: str
    model_type: str
    parameters: int
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int


class GpuMemory(Frozen, frozen=True):
    """Peak memory of one GPU, in GiB. ``expected_gib`` is the sum of ``parts``."""

    parts: dict[str, float]
    expected_gib: float
    capacity_gib: float


class Memory(Frozen, frozen=True):
    """What has to fit."""

    gpu: GpuMemory
    host_gib_per_node: float
    host_capacity_gib_per_node: float


class Time(Frozen, frozen=True):
    """Forecast of speed. A first estimate from peak FLOP/s and an assumed MFU, not a measurement."""

    step_seconds: float
    """Seconds an optimizer step."""
    tokens_per_second_per_gpu: float
    total_steps: int | None
    """Optimizer steps; None while neither the data nor max_steps is known."""
    hours: float | None
    gpu_hours: float | None


class Plan(Frozen, frozen=True, kw_only=True):
    """Everything that rendering, the DeepSpeed JSON and the workers need to know; no number is kept twice."""

    version: int = 1
    model: PlannedModel
    cluster: str
    gpu: str
    """Name in the GPU table, ``a100-80gb``; ``cpu`` on a machine without."""
    engine: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[3] = 3
    precision: Precision
    # --- execution: how it is computed
    nodes: int
    gpus: int
    gpus_per_node: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool
    offload: Offload
    # --- mathematics: what is learnt
    global_batch_size: int
    """Sequences an optimizer step = micro_batch_size x gradient_accumulation_steps x gpus, exactly."""
    seq_len: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    epochs: int
    max_steps: int | None
    rows: int | None
    seed: int
    # --- what it takes
    memory: Memory
    checkpoint_gb: float
    """One committed checkpoint on disk, in GB."""
    export_gb: float
    disk_gb: float
    """Kept checkpoints, one in flight, and the export, in GB."""
    time: Time
    signal_lead_seconds: int
    """Seconds before the end at which the scheduler has to warn: a step, a checkpoint and a margin."""
    why: tuple[str, ...]
    """Sentences: why this many GPUs, why recomputation, what the next smaller plan lacks."""
    quantities: tuple[Quantity, ...]

    def to_json(self) -> bytes:
        """Return the plan as indented JSON, with a stable order of keys and a final newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def from_json(data: bytes) -> Plan:
        """Read what `to_json` wrote. Raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=Plan)

    def to_builtins(self) -> dict[str, Any]:
        """Return the plan as dicts, lists, strings and numbers."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result
