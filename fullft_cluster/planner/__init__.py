"""Planning: from a configuration, a model, a cluster and the data's size to a Plan. Pure: no clock and no network.

`setup` is one GPU's situation; `activations`, `sharding` and `memory` say what it takes of the GPU, `storage` of host
and disk, `speed` and `calibration` how long. `layout`, `batch` and `search` say what there is to choose from, `choose`
and `refuse` do, `options` compares, `defaults` fills in the mathematics, `assemble` makes the Plan, `explain` and `why`
account for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import Cluster, Gpu, load_gpu
from fullft_cluster.model import ModelSpec
from fullft_cluster.plan import Plan
from fullft_cluster.planner import defaults, kernels
from fullft_cluster.planner.assemble import assemble
from fullft_cluster.planner.calibration import Measured
from fullft_cluster.planner.choose import choose
from fullft_cluster.planner.task import Data, Task

__all__ = ["Data", "make_plan"]


def make_plan(
    config: Config, model: ModelSpec, cluster: Cluster, data: Data, measured: tuple[Measured, ...] = ()
) -> Plan:
    """Return the plan that is best by the user's objective among those that fit; by default the fewest GPUs.

    Raises UsageError for what cannot be meant (a sequence longer than the model's, constraints that exclude each other,
    a batch that does not divide: with the nearest valid values) and DoesNotFitError for what fits no allowed layout
    or deadline (with the shortfall and the nearest plan that fits).
    """
    gpu = load_gpu(cluster.gpu)
    problems = list(_contradictions(config, model, gpu))
    if problems:
        raise UsageError(problems)
    epochs = config.train.epochs or defaults.epochs(data.rows)
    tokens = data.tokens * epochs if data.tokens else None
    task = Task(config, model, cluster, gpu, tokens=tokens, measured=measured)
    return assemble(task, choose(task), data)


def _contradictions(config: Config, model: ModelSpec, gpu: Gpu) -> Iterator[Problem]:
    """Yield what cannot be meant, whatever the nodes."""
    wanted = config.resources
    if config.train.seq_len > model.longest_sequence:
        what = f"{config.train.seq_len} is more than the {model.longest_sequence} positions of {model.name}"
        yield Problem("train.seq_len", what, f"Write at most {model.longest_sequence}.")
    if config.train.precision == "bf16" and not gpu.bf16:
        what = f"{gpu.name} does not compute in bf16"
        yield Problem("train.precision", what, "Take a cluster with A100s or newer GPUs.")
    yield from kernels.contradictions(config, gpu.name)
    if wanted.engine == "fsdp":
        fix = "Leave one of the two out."
        if wanted.zero_stage in (1, 2):
            what = f"{wanted.zero_stage} is a stage of DeepSpeed's, but resources.engine is fsdp, planned as full shard"
            yield Problem("resources.zero_stage", what, fix)
        if wanted.hpz:
            yield Problem("resources.hpz", "is a part of DeepSpeed, but resources.engine is fsdp", fix)
        if wanted.offload == "optimizer":
            what = (
                "optimizer alone is offloaded by deepspeed, but resources.engine is fsdp, which offloads all or nothing"
            )
            yield Problem("resources.offload", what, "Write parameters, or leave one of the two out.")
        return
    if wanted.hpz and wanted.zero_stage not in (None, 3):
        what = f"is a part of ZeRO-3, but resources.zero_stage is {wanted.zero_stage}"
        yield Problem("resources.hpz", what, "Leave one of the two out.")
    if wanted.offload == "parameters" and wanted.zero_stage in (1, 2):
        what = f"only ZeRO-3 offloads parameters, but resources.zero_stage is {wanted.zero_stage}"
        yield Problem("resources.offload", what, "Write optimizer, or leave zero_stage out.")
