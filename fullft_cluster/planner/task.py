"""The nouns of the search: the Task that is to be planned, and a Choice, one way to run it with what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec

from fullft_cluster.config import Config, OutputConfig, ResourcesConfig
from fullft_cluster.hardware import CPU, Cluster, Gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Interval, Offload, PhaseName, ZeroStage
from fullft_cluster.plan_words import noun
from fullft_cluster.planner import calibration, speed, storage
from fullft_cluster.planner.batch import Batch
from fullft_cluster.planner.calibration import Measured
from fullft_cluster.planner.layout import Layout
from fullft_cluster.planner.memory import SPREAD, Parts, interval
from fullft_cluster.planner.setup import Setup
from fullft_cluster.units import GB, GIB, in_gb, in_gib

TOKENS_SPREAD = 0.15
"""Relative half-width of a number of tokens that was estimated from the size of the text."""

WITHOUT_END = 1e9
"""Tokens that hours are told for while the length of the run is not known."""

BYTES_PER_TOKEN = 4.0
"""Bytes of English text that a token of a 32,000 to 128,000 piece vocabulary stands for, about. Default."""


@dataclass(frozen=True)
class Data:
    """What is known of the training data before it is tokenised."""

    rows: int | None = None
    text_bytes: int | None = None
    """UTF-8 bytes of the text of all rows."""

    @property
    def tokens(self) -> int | None:
        """Return about how many tokens one pass over it has."""
        return max(round(self.text_bytes / BYTES_PER_TOKEN), 1) if self.text_bytes else None

    def source_with(self, max_steps: int | None) -> str:
        """Return in words where the number of tokens of a run comes from."""
        estimate = (
            f"estimated from {self.text_bytes:,} bytes of text, {BYTES_PER_TOKEN:g} a token" if self.tokens else ""
        )
        limit = f"max_steps {max_steps}" if max_steps else ""
        return "; at most ".join(text for text in (estimate, limit) if text) or "not known: give --data or --max-steps"


@dataclass(frozen=True)
class Task:
    """What is to be planned, and on what."""

    config: Config
    model: ModelSpec
    cluster: Cluster
    gpu: Gpu
    tokens: int | None = None
    """Tokens that the whole run trains on, where they are known."""
    measured: tuple[Measured, ...] = ()
    """What runs on this cluster were measured at."""

    @property
    def wanted(self) -> ResourcesConfig:
        """Return the user's words on execution."""
        return self.config.resources

    @property
    def price_per_gpu_hour(self) -> float | None:
        """Return the price of a GPU for an hour: the user's, else the cluster profile's, else None."""
        return self.wanted.price_per_gpu_hour or self.cluster.price_per_gpu_hour

    def changed(self, **changes: object) -> Task:
        """Return the task with other resources."""
        resources = msgspec.structs.replace(self.wanted, **changes)
        config = msgspec.structs.replace(self.config, resources=resources)
        return replace(self, config=config)

    def with_global_batch(self, sequences: int) -> Task:
        """Return the task with this global batch."""
        return self._with_train(global_batch_size=sequences)

    def with_seq_len(self, tokens: int) -> Task:
        """Return the task with sequences of this length."""
        return self._with_train(seq_len=tokens)

    def _with_train(self, **changes: int) -> Task:
        train = msgspec.structs.replace(self.config.train, **changes)
        return replace(self, config=msgspec.structs.replace(self.config, train=train))

    def with_output(self, output: OutputConfig) -> Task:
        """Return the task with another run directory."""
        return replace(self, config=msgspec.structs.replace(self.config, output=output))


@dataclass(frozen=True)
class Variant:
    """How the work is cut, besides the layout and the micro-batch. None of it changes what is learnt."""

    activation_checkpointing: bool
    offload: Offload
    zero_stage: ZeroStage
    hpz: bool = False


def _worst(phases: Mapping[PhaseName, Parts], spread: Mapping[str, tuple[float, float]]) -> tuple[float, float, float]:
    """Return the largest low, expected and high sum of all phases."""
    low, expected, high = zip(*(interval(parts, spread) for parts in phases.values()), strict=True)
    return max(low), max(expected), max(high)


@dataclass(frozen=True)
class Choice:
    """One way to run it, with what it takes; amounts in bytes."""

    task: Task
    layout: Layout
    batch: Batch
    variant: Variant
    setup: Setup
    gpu_phases: dict[PhaseName, Parts]
    gpu_capacity: int
    host_phases: dict[PhaseName, Parts]
    host_capacity: int
    exact: bool = field(default=False)
    """The user named GPUs and micro-batch: then what is expected has to fit, without a reserve."""

    @property
    def global_batch(self) -> int:
        """Return the sequences of an optimizer step."""
        return self.batch.micro * self.batch.accumulation * self.layout.gpus

    @cached_property
    def phase(self) -> PhaseName:
        """Return the phase in which a GPU needs most."""
        return max(self.gpu_phases, key=lambda name: sum(self.gpu_phases[name].values()))

    @cached_property
    def gpu_bytes(self) -> tuple[float, float, float]:
        """Return a GPU's peak: low, expected, high."""
        return _worst(self.gpu_phases, SPREAD)

    @cached_property
    def host_bytes(self) -> tuple[float, float, float]:
        """Return a node's peak: low, expected, high."""
        return _worst(self.host_phases, storage.SPREAD)

    @property
    def disk_bytes(self) -> int:
        """Return what the run takes on disk."""
        return storage.disk_bytes(self.setup, self.task.config.output.save_total_limit, best=self.keeps_best)

    @property
    def keeps_best(self) -> bool:
        """Return whether the weights of the lowest evaluation loss are kept."""
        data = self.task.config.data
        return self.task.config.output.save_best and (data.validation is not None or data.validation_fraction > 0)

    @property
    def needed_gpu_bytes(self) -> float:
        """Return what has to be there for it to be said to fit: the high end, or what is expected of an exact wish."""
        return self.gpu_bytes[1 if self.exact or self.setup.gpu == CPU else 2]

    @cached_property
    def memory_fits(self) -> bool:
        """Return whether every phase fits the GPU and the host."""
        return self.needed_gpu_bytes <= self.gpu_capacity and self.host_bytes[1] <= self.host_capacity

    @cached_property
    def fits(self) -> bool:
        """Return whether every phase fits the GPU and the host, and the run the disk."""
        free = self.task.cluster.filesystem_free_gb
        return self.memory_fits and (free is None or self.disk_bytes <= free * GB)

    def shortfall(self) -> str:
        """Return in words what is short by how much."""
        each = f"a {noun(self.setup.gpu)}"
        needs = []
        if (needed := self.needed_gpu_bytes) > self.gpu_capacity:
            short = in_gib((needed - self.gpu_capacity) / GIB)
            upto = "" if needed == self.gpu_bytes[1] else "up to "
            needs.append(
                f"{upto}{in_gib(needed / GIB)} {each} where there are {self.gpu_capacity / GIB:.1f} ({short} short)"
            )
        if (needed := self.host_bytes[1]) > self.host_capacity:
            short, there = in_gib((needed - self.host_capacity) / GIB), self.host_capacity / GIB
            needs.append(f"{in_gib(needed / GIB)} of host memory a node where there are {there:.1f} ({short} short)")
        free = self.task.cluster.filesystem_free_gb
        if free is not None and self.disk_bytes > free * GB:
            short = in_gb(self.disk_bytes / GB - free)
            needs.append(f"{in_gb(self.disk_bytes / GB)} of disk where {in_gb(free)} are free ({short} short)")
        return f"needs {' and '.join(needs)} on {self.layout.on(self.setup.gpu)} of {self.setup.gpu}"

    # --- time

    @cached_property
    def step_parts(self) -> dict[str, float]:
        """Return the seconds of an expected step by cause, after what the cluster was measured at."""
        parts = speed.step_seconds(self.setup, self.task.gpu, self.task.cluster)
        factor = calibration.factor(self.setup, self.task.measured)
        return {name: seconds * factor for name, seconds in parts.items()}

    @cached_property
    def step(self) -> Interval:
        """Return the seconds of a step."""
        expected = sum(self.step_parts.values())
        wide = 1 + calibration.spread(self.setup, self.task.measured, self.step_parts)
        return Interval(low=expected / wide, expected=expected, high=expected * wide)

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of an optimizer step."""
        return self.global_batch * self.task.config.train.seq_len

    @property
    def steps(self) -> int | None:
        """Return the optimizer steps of the run; None where its length is not known."""
        limit = self.task.config.train.max_steps
        if self.task.tokens is None:
            return limit
        whole = max(-(-self.task.tokens // self.tokens_per_step), 1)
        return min(whole, limit) if limit else whole

    @cached_property
    def hours(self) -> Interval:
        """Return the hours of the whole run with its checkpoints and export; of WITHOUT_END tokens where its end is
        unknown."""
        steps = self.steps or WITHOUT_END / self.tokens_per_step
        saves = math.ceil(steps / self.task.config.output.save_steps)  # the last step is saved too, and exported
        exported = storage.export_bytes(self.task.model.parameters, self.setup.precision) if self.steps else 0
        saved = saves * storage.checkpoint_bytes(self.setup) + exported
        training, saving = steps * self.step.expected, speed.checkpoint_seconds(saved, self.task.cluster)
        estimated = bool(self.steps) and self.steps != self.task.config.train.max_steps
        wide = 1 + math.hypot(self.step.high / self.step.expected - 1, TOKENS_SPREAD if estimated else 0.0)
        low, expected, high = (training / wide + saving, training + saving, training * wide + saving)
        return Interval(low=low / 3600, expected=expected / 3600, high=high / 3600)
