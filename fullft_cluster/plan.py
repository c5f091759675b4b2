"""The noun Plan: what will be learnt, on which GPUs, in how much memory. Plain data; `planner` makes it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Origin = Literal["given", "derived", "default", "measured"]
Precision = Literal["bf16", "fp32"]
Offload = Literal["none", "optimizer", "parameters"]
"""What lives in host memory: nothing, the optimizer's states, or the optimizer's states and the parameters."""
Engine = Literal["deepspeed", "fsdp"]
ZeroStage = Literal[1, 2, 3]
Loss = Literal["naive", "chunked", "liger"]
"""How the cross-entropy is computed: all logits at once, by pieces of the sequence, or by Liger's fused kernel."""
Attention = Literal["flash_attention_2", "sdpa", "eager"]
Objective = Literal["fewest-gpus", "least-cost", "fastest"]
PhaseName = Literal["load", "forward", "backward", "optimizer_step", "save", "resume"]


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


class Interval(Frozen, frozen=True):
    """A forecast with its uncertainty: nine of ten outcomes are meant to lie between ``low`` and ``high``."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Interval:
        """Return the interval in another unit; ``factor`` is positive."""
        return Interval(low=self.low * factor, expected=self.expected * factor, high=self.high * factor)


class Phase(Frozen, frozen=True):
    """Peak memory within one phase of a run, in GiB; ``gib.expected`` is the sum of ``parts``."""

    name: PhaseName
    parts: dict[str, float]
    gib: Interval


class Peaks(Frozen, frozen=True):
    """Memory of one GPU, or of one node's host, in each phase of a run, and what there is. In GiB."""

    phases: tuple[Phase, ...]
    peak: PhaseName
    """The phase that needs most."""
    parts: dict[str, float]
    """The parts of that phase, a copy for readers of the JSON."""
    low_gib: float
    expected_gib: float
    high_gib: float
    capacity_gib: float


class Memory(Frozen, frozen=True):
    """What has to fit."""

    gpu: Peaks
    """One GPU."""
    host: Peaks
    """One node."""
    host_gib_per_node: float
    """The host's expected peak, as a job asks for it."""
    host_capacity_gib_per_node: float
    allocated_gib: float
    """What torch.cuda.max_memory_allocated is expected to say: without CUDA context, NCCL and fragmentation."""


class Time(Frozen, frozen=True):
    """Forecast of speed."""

    step_seconds: Interval
    """Seconds an optimizer step."""
    step_parts: dict[str, float]
    """Seconds of an expected step by cause: compute, communication that computing does not hide, host link, ..."""
    tokens_per_second_per_gpu: Interval
    mfu: Interval | None
    """Share of the GPU's peak that the model's own FLOPs take (6 N + attention; no recomputation); None on CPUs."""
    checkpoint_seconds: float
    """Seconds in which a checkpoint is written, at the profile's speed of the file system."""
    tokens: int | None
    """Tokens that the whole run trains on; None while neither the data nor max_steps is known."""
    tokens_source: str
    """Where `tokens` comes from, in words."""
    total_steps: int | None
    """Optimizer steps; None where `tokens` is."""
    hours: Interval | None
    """Of the whole run, checkpoints included."""
    gpu_hours: Interval | None
    cost: Interval | None
    """GPU-hours x the price of one; None where no price is given."""
    basis: str
    """What the speed was learnt from, in words: the published runs behind the prior, or the run that calibrated it."""


class Option(Frozen, frozen=True):
    """One way to run it that was looked at, for comparison."""

    nodes: int
    gpus: int
    gpus_per_node: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool
    zero_stage: ZeroStage
    hpz: bool
    offload: Offload
    gpu_gib: float
    """Expected peak of one GPU."""
    fits: bool
    step_seconds: float
    hours: float
    """Of the whole run; of a billion tokens where its length is not known."""
    gpu_hours: float
    cost: float | None
    pareto: bool
    """No other option that fits is better in one of GPUs, hours and GPU-hours and no worse in the others."""
    chosen: bool
    note: str = ""
    """What it lacks, where it does not fit."""


class Plan(Frozen, frozen=True, kw_only=True):
    """Everything that rendering, the DeepSpeed JSON and the workers need to know; no number is kept twice."""

    version: int = 2
    model: PlannedModel
    cluster: str
    gpu: str
    """Name in the GPU table, ``a100-80gb``; ``cpu`` on a machine without."""
    engine: Engine = "deepspeed"
    zero_stage: ZeroStage = 3
    hpz: bool = False
    """ZeRO++ hpZ: a second copy of the parameters, sharded within each node, spares gathering them between nodes."""
    precision: Precision
    # --- execution: how it is computed
    nodes: int
    gpus: int
    gpus_per_node: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool
    offload: Offload
    loss: Loss = "naive"
    attn_implementation: Attention = "sdpa"
    """What is expected on the nodes; a worker takes the next one where it cannot be had and none was asked for."""
    liger_kernel: bool = False
    torch_compile: bool = False
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
    disk_free_gb: float | None
    """What the cluster profile says is free on the shared file system, in GB; None = not checked."""
    time: Time
    signal_lead_seconds: int
    """Seconds before the end at which the scheduler has to warn: a step, a checkpoint and a margin."""
    why: tuple[str, ...]
    """Sentences: why this many GPUs, why recomputation, what the next smaller plan lacks."""
    options: tuple[Option, ...]
    """The choice, the Pareto front of GPUs, hours and GPU-hours, and the next smaller plan."""
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
