"""The nouns Gpu and Cluster: what a GPU and a node offer, as data in configs/gpus.yaml and configs/clusters/."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fullft_cluster import struct_check, yaml_struct
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.foreign_names import FOREIGN_NAMES
from fullft_cluster.plan import Frozen
from fullft_cluster.resources import share

Count = Annotated[int, Meta(ge=1, le=10**6)]
Amount = Annotated[float, Meta(gt=0, le=10**7)]
Share = Annotated[float, Meta(gt=0, le=1)]

CPU = "cpu"
"""The GPU name of a machine without: workers compute on CPUs over gloo, in the node's memory."""


class Gpu(Frozen, frozen=True, kw_only=True):
    """A GPU type. Each figure comes with where it is from."""

    name: str
    memory_gib: Amount | None
    """What the device itself reports, in GiB: less than the name says. None for ``cpu``: a share of the node's."""
    memory_source: str
    peak_tflops: Amount
    """Dense bf16 matrix FLOP/s of the data sheet, in TFLOP/s, without sparsity."""
    peak_source: str
    bf16: bool = True
    """Whether its matrix units compute in bf16; where not, peak_tflops is of fp16."""
    memory_gb_per_second: Amount
    """Bandwidth of the GPU's own memory of the data sheet, in GB/s."""
    memory_bandwidth_source: str
    host_gb_per_second: Amount
    """Bandwidth of one GPU to its node's memory, one direction, as measured on an idle link, in GB/s."""
    host_source: str
    matmul_share: Share
    """Share of peak_tflops that the best large matrix product reaches, as measured."""
    matmul_source: str
    attention_share: Share
    """Share of peak_tflops that attention's kernels (FlashAttention 2) reach in training."""
    attention_source: str


class Cluster(Frozen, frozen=True, kw_only=True):
    """Nodes of one kind, and what their site needs. A file in configs/clusters/, made to be copied."""

    name: str
    description: str = ""
    gpu: str
    """Name in configs/gpus.yaml."""
    gpus_per_node: Annotated[int, Meta(ge=1, le=1024)]
    max_nodes: Annotated[int, Meta(ge=1, le=10**5)]
    """No plan is laid on more nodes than this."""
    cpus_per_node: Count
    host_memory_gib: Amount
    """Memory of a node that a job may use, in GiB."""
    intra_node_gb_per_second: Amount
    """Bandwidth of one GPU to the others in its node, one direction, in GB/s."""
    inter_node_gb_per_second: Amount
    """Bandwidth of one node to the others, one direction, in GB/s."""
    filesystem_write_gb_per_second: Amount
    """What one job may count on when it writes a checkpoint to the shared file system, in GB/s."""
    filesystem_free_gb: Amount | None = None
    """Free space of the shared file system that a run may fill, in GB; None = not checked."""
    price_per_gpu_hour: Amount | None = None
    """What one GPU costs for an hour, in the currency that the site counts in; None = no costs are shown."""
    slurm_gpu_type: str | None = None
    """TYPE of ``sbatch --gpus-per-node=TYPE:COUNT``; None asks for a count alone."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment of the workers."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each node before the supervisor: ``module load cuda``."""
    python: str | None = None
    """The Python of the training environment on the nodes; None = the one that submits."""
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    """Any keys of a job's configuration: the site's defaults, below the job's own."""


@cache
def gpus() -> Mapping[str, Gpu]:
    """Return the table of GPUs by name. Raises UsageError when configs/gpus.yaml is wrong."""
    located = yaml_struct.load_yaml(share("configs") / "gpus.yaml")
    rows = {name: {"name": name, **located.section(name).data} for name in located.data}
    try:  # The table as a whole takes a tenth of the time of checking it leaf by leaf, and it ships.
        if not located.problems:
            return MappingProxyType(msgspec.convert(rows, type=dict[str, Gpu]))
    except msgspec.ValidationError:
        pass
    problems = list(located.problems)
    for name, row in rows.items():
        problems += struct_check.check(Gpu, row, located.section(name).where)
    raise UsageError(problems)


def load_gpu(name: str) -> Gpu:
    """Return one row of the table. Raises UsageError for a name that is not in it."""
    table = gpus()
    if name not in table:
        raise UsageError(Problem("gpu", f"unknown GPU {name!r}", did_you_mean(name, table)))
    return table[name]


def clusters() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in (share("configs") / "clusters").glob("*.yaml"))


def load_cluster(ref: str) -> Cluster:
    """Return the profile that ``ref`` names: one in configs/clusters/, or the path of a YAML file.

    Raises UsageError with every problem of the file at once, each as ``file:line: key: what. fix``.
    """
    names = clusters()
    path = share("configs") / "clusters" / f"{ref}.yaml" if ref in names else Path(ref)
    if ref not in names and "/" not in ref and not ref.endswith((".yaml", ".yml")):
        fix = f"{did_you_mean(ref, names)} A profile of your own is given by its path."
        raise UsageError(Problem("cluster", f"unknown cluster {ref!r}", fix))
    located = yaml_struct.load_yaml(path)
    # A key without a value is as good as none: people empty a line of a copied profile.
    data = {"name": path.stem} | {key: value for key, value in located.data.items() if value is not None}
    problems = [*located.problems, *struct_check.check(Cluster, data, located.where)]
    overlay = located.section("config")
    problems += struct_check.check(Config, overlay.data, overlay.where, FOREIGN_NAMES)
    table = gpus()
    if isinstance(data.get("gpu"), str) and data["gpu"] not in table:
        where = f"{located.where('gpu')}: gpu"
        problems.append(Problem(where, f"unknown GPU {data['gpu']!r}", did_you_mean(data["gpu"], table)))
    if problems:
        raise UsageError(problems)
    return msgspec.convert(data, type=Cluster)
