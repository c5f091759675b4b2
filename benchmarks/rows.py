"""The published rows of benchmarks/data as the planner's own nouns: a Setup and a Cluster for each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.competitors import Case
from benchmarks.models import mpt_spec
from fullft_cluster.hardware import Cluster, load_cluster
from fullft_cluster.model import load_model, spec_from_config
from fullft_cluster.model_shape import ModelSpec
from fullft_cluster.planner.setup import Loss, Setup
from fullft_cluster.planner.sharding import states
from fullft_cluster.units import GIB

DATA = Path(__file__).parent / "data"

DEEPSPEED_DEFAULTS: Mapping[str, Any] = {
    # https://github.com/deepspeedai/DeepSpeed/blob/v0.14.2/deepspeed/runtime/zero/config.py
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "sub_group_size": 1_000_000_000,
}
GPUS = {"h100": "h100-80gb", "h200": "h200-141gb"}
"""Names in the data that the table of GPUs spells otherwise."""

LINKS = {
    # (one GPU to the others in its node, one node to the others) in GB/s, one direction, at the links' nominal speed.
    "a100-80gb": (300, 200),  # NVLink 3; 1600 Gb/s RoCE as LLM-foundry states
    "a100-40gb": (300, 200),
    "a800-80gb": (200, 25),  # NVLink cut to 400 GB/s both ways
    "h100-80gb": (450, 400),  # NVLink 4; 8 x 400 Gb/s, the usual of an HGX H100
    "h200-141gb": (450, 200),  # KempnerForge's nodes have 4 GPUs with 400 Gb/s each
}
SHAPES = {
    # hidden/ffn/layers/heads/kv/vocab of models that the data calls by name, from their config.json
    "llama2-13b": "5120/13824/40/40/40/32000",
    "llama2-70b": "8192/28672/80/64/8/32000",
    "llama3-8b": "4096/14336/32/32/8/128256",
    "llama3-70b": "8192/28672/80/64/8/128256",
}
Fields = dict[str, str]
MPT_LOSS: Loss = "fused"
"""LLM-foundry's default is flash-attn's cross-entropy, which writes the gradient over the 16-bit logits
(llmfoundry/models/mpt/modeling_mpt.py, ``om_model_config.get('loss_fn', 'fused_crossentropy')``)."""


def read(name: str) -> list[Fields]:
    """Return the rows of a file in benchmarks/data; lines that start with # are its comments."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@dataclass(frozen=True)
class MemoryRow:
    """A row of a ZeRO memory table: LLaMA-7B on 8 x A800."""

    setup: Setup
    cluster: Cluster
    case: Case
    inferred: bool
    allocated_gib: float
    peak_gib: float
    host_gb: float
    samples_per_second: float

    @property
    def before_first_step(self) -> bool:
        """Return whether less is allocated than weights and optimizer states take: Adam's moments were not there yet.

        ZeRO-1 and 2 make them in the first step (stage_1_and_2.py), ZeRO-3 at the start. See data/README.md.
        """
        return self.setup.zero_stage < 3 and self.allocated_gib * GIB < sum(states(self.setup).values())

    @property
    def name(self) -> str:
        """Return the row in words."""
        offload = {"none": "", "optimizer": ", optimizer offloaded", "parameters": ", both offloaded"}
        recomputed = "recomputed" if self.setup.activation_checkpointing else "all kept"
        hpz = ", hpZ" if self.setup.hpz > 1 else ""
        batch = self.setup.micro_batch_size
        return f"ZeRO-{self.setup.zero_stage}, {recomputed}{offload[self.setup.offload]}{hpz}, batch {batch}"


@dataclass(frozen=True)
class SpeedRow:
    """A measured throughput."""

    name: str
    setup: Setup
    cluster: Cluster
    tokens_per_second_per_gpu: float
    source: str


@dataclass(frozen=True)
class VerdictRow:
    """A run that ran, or that ran out of memory."""

    name: str
    setup: Setup
    cluster: Cluster
    fits: bool
    source: str
    host_gb: float | None = None


def cluster_of(gpu: str, gpus_per_node: int = 8, between: float | None = None) -> Cluster:
    """Return a cluster of this GPU with its usual links, or the stated one between nodes (GB/s a node)."""
    inside, usual = LINKS[gpu]
    return msgspec.structs.replace(
        load_cluster("a100-80gb"),
        name=gpu,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        max_nodes=64,
        intra_node_gb_per_second=inside,
        inter_node_gb_per_second=between or usual,
    )


def memory_rows(name: str) -> list[MemoryRow]:
    """Return the rows of a table like zero3_peak_llama7b.csv."""
    return [_memory_row(fields) for fields in read(name)]


def _memory_row(fields: Fields) -> MemoryRow:
    stage, batch = int(fields["zero_stage"]), int(fields["per_device_batch"])
    recomputed, hpz = fields["activation_checkpointing"] == "1", fields.get("hpz") == "1"
    optimizer, parameters = fields["offload_optimizer"] == "1", fields["offload_param"] == "1"
    per_step = 128 if batch == 16 else 64  # the published batch of an update
    cluster, model = cluster_of("a800-80gb"), load_model("7b")
    zero = documented(stage, model.hidden_size)
    setup = Setup(
        model=model,
        gpu=cluster.gpu,
        gpus=8,
        nodes=1,
        micro_batch_size=batch,
        seq_len=4096,
        activation_checkpointing=recomputed,
        precision="bf16",
        offload="parameters" if parameters else "optimizer" if optimizer else "none",
        zero=zero | ({"zero_hpz_partition_size": 8} if hpz else {}),
        accumulation=per_step // (8 * batch),
        loss="shifted",
        weights_in_graph=stage == 3 and not recomputed,
    )
    return MemoryRow(
        setup=setup,
        cluster=cluster,
        case=Case(model, 8, 1, batch, 4096, recomputed, stage, optimizer, parameters, zero_init=False),
        inferred=fields["inferred"] == "1",
        allocated_gib=float(fields["gpu_allocated_gib"]),
        peak_gib=float(fields["gpu_peak_gib"]),
        host_gb=float(fields["host_used_gb"]),
        samples_per_second=float(fields["samples_per_second"]),
    )


def documented(stage: int, hidden_size: int) -> dict[str, Any]:
    """Return the zero_optimization that transformers' documentation shows for a stage, its "auto" values filled in.

    https://huggingface.co/docs/transformers/v4.40.0/main_classes/deepspeed (ZeRO-2 and ZeRO-3 Config), and
    integrations/deepspeed.py, `trainer_config_finalize`. The table's own JSON is not published.
    """
    auto = {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": hidden_size * hidden_size * 9 // 10,
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    return {**DEEPSPEED_DEFAULTS, **(auto if stage == 3 else {}), "stage": stage, "overlap_comm": True}


def fsdp_setup(fields: Fields, model: ModelSpec, gpu: str, gpus_per_node: int = 8) -> Setup:
    """Return the Setup of a run under FSDP's full shard."""
    gpus = int(fields["gpus"])
    return Setup(
        model=model,
        gpu=gpu,
        gpus=gpus,
        nodes=-(-gpus // gpus_per_node),
        micro_batch_size=int(fields["micro_batch"]),
        seq_len=int(fields["seq_len"]),
        activation_checkpointing=fields.get("activation_checkpointing", "1") == "1",
        precision="bf16",
        offload="none",
        zero={},
        accumulation=int(fields.get("grad_accum", "1")),
        engine="fsdp",
        pure_bf16=fields.get("precision") == "bf16_pure",
    )


def foundry_rows(name: str) -> list[SpeedRow]:
    """Return LLM-foundry's rows: MPT models under FSDP."""
    rows = []
    for fields in read(name):
        gpu = fields.get("gpu", "a100-80gb")
        gpu = GPUS.get(gpu, gpu)
        setup = fsdp_setup(fields, mpt_spec(fields["model"], int(fields["seq_len"])), gpu)
        setup = replace(setup, loss=MPT_LOSS)
        recomputed = "" if setup.activation_checkpointing else ", all kept"
        title = f"{fields['model']}, {setup.gpus} x {gpu}, {fields['seq_len']} x {fields['micro_batch']}{recomputed}"
        source = fields.get("source", "README.md")
        measured = float(fields["tokens_per_second_per_gpu"])
        rows.append(SpeedRow(title, setup, cluster_of(gpu), measured, source))
    return rows


def gist_speed_rows(name: str) -> list[SpeedRow]:
    """Return the throughput of a ZeRO memory table: samples a second of 8 GPUs, 4096 tokens each."""
    return [
        SpeedRow(row.name, row.setup, row.cluster, row.samples_per_second * 4096 / 8, "gist")
        for row in memory_rows(name)
    ]


def shape(text: str) -> ModelSpec:
    """Return the preset of a name, or a LLaMA of ``hidden/ffn/layers/heads/kv/vocab``."""
    sizes = SHAPES.get(text, text)
    if "/" not in sizes:
        return load_model(sizes)
    hidden, ffn, layers, heads, kv, vocab = map(int, sizes.split("/"))
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
    }  # fmt: skip
    return spec_from_config(config, text, "benchmarks/data")


def extra_speed_rows(name: str = "extra_throughput.csv") -> list[SpeedRow]:
    """Return the throughput that other stacks published."""
    rows = []
    for fields in read(name):
        gpu, per_node = GPUS.get(fields["gpu"], fields["gpu"]), int(fields["gpus_per_node"])
        model = shape(fields["model"])
        stated = float(fields["network_gb_per_second"] or 0)
        setup = fsdp_setup(fields, model, gpu, per_node)
        title = f"{fields['model']}, {setup.gpus} x {gpu}, {fields['seq_len']} x {fields['micro_batch']}"
        measured = float(fields["tokens_per_second_per_gpu"])
        rows.append(SpeedRow(title, setup, cluster_of(gpu, per_node, stated or None), measured, fields["source"]))
    return rows


def verdict_setup(fields: Fields, gpu: str, gpus_per_node: int, stage: int = 3) -> Setup:
    """Return the Setup of a run under ZeRO with DeepSpeed's defaults, every layer recomputed."""
    setup = fsdp_setup(fields, shape(fields["model"]), gpu, gpus_per_node)
    zero = {**DEEPSPEED_DEFAULTS, "stage": stage, "overlap_comm": stage == 3}
    return replace(setup, engine="deepspeed", zero=zero, offload=fields["offload"])


def verdict_rows(name: str) -> list[VerdictRow]:
    """Return runs that ran and runs that did not, with every layer recomputed."""
    rows = []
    for fields in read(name):
        gpu, per_node = fields.get("gpu", "a100-80gb"), int(fields.get("gpus_per_node", "8"))
        gpu = GPUS.get(gpu, gpu)
        if fields.get("engine", "deepspeed") == "deepspeed":
            setup = verdict_setup(fields, gpu, per_node)
        else:
            setup = fsdp_setup(fields, shape(fields["model"]), gpu, per_node)
        title = f"{fields['model']} on {setup.gpus} x {gpu}, {fields['seq_len']} x {fields['micro_batch']}"
        title += "" if fields["offload"] == "none" else f", {fields['offload']} offloaded"
        host = float(fields.get("host_gb") or 0) or None
        title += f", host of {host:.0f} GB" if host else ""
        rows.append(VerdictRow(title, setup, cluster_of(gpu, per_node), fields["fits"] == "1", fields["source"], host))
    return rows
