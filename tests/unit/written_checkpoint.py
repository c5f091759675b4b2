"""A run with a committed checkpoint, its files laid out as DeepSpeed's and FSDP's are, without any training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from fullft_cluster import checkpoints
from fullft_cluster.config import Config
from fullft_cluster.hardware import load_cluster
from fullft_cluster.model import load_model
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.resources import share
from fullft_cluster.rundir import RunDir

TOKENIZER = share("configs") / "sample" / "tokenizer"
SHAPE: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 36,
    "intermediate_size": 54, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
"""Sizes that three ranks cannot share evenly."""

Tensors = dict[str, torch.Tensor]


def make_run(path: Path, *, precision: str = "bf16", end_of_turn_id: int | None = None, **hf: Any) -> RunDir:
    """Return a run directory whose model has the sample tokenizer; no weights are anywhere."""
    run = RunDir(path)
    run.make()
    model = path.parent / f"{path.name}-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**SHAPE, **hf}))
    for file in TOKENIZER.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = {
        "model": str(model), "weights": str(model), "cluster": "local", "data": {"train": str(path / "x.jsonl")},
        "train": {"precision": precision, "seq_len": 64, "global_batch_size": 8},
        "resources": {"nodes": 1, "gpus_per_node": 2},
    }  # fmt: skip
    run.config.write_text(yaml.safe_dump(config))
    plan = make_plan(
        msgspec.convert(config, Config), load_model(str(model)), load_cluster("local"), Data(rows=10)
    )  # fmt: skip
    run.plan.write_bytes(plan.to_json())
    run.data.write_text(json.dumps({"end_of_turn_id": end_of_turn_id}))
    run.update_run(name=run.name, backend="local")
    return run


def draw(run: RunDir) -> Tensors:
    """Return random fp32 weights for the run's model, in the order of its parameters."""
    spec = load_model(json.loads(json.dumps(yaml.safe_load(run.config.read_text())))["model"])
    widths = {spec.hidden_size, spec.intermediate_size}
    generator = torch.Generator().manual_seed(5)
    tensors = list(spec.outer_tensors())
    for layer in range(spec.num_hidden_layers):
        tensors += [msgspec.structs.replace(t, name=f"model.layers.{layer}.{t.name}") for t in spec.layer_tensors()]
    drawn = {}
    for tensor in tensors:
        width = spec.intermediate_size if "down_proj" in tensor.name else spec.hidden_size
        shape = (tensor.elements,) if tensor.elements in widths else (tensor.elements // width, width)
        drawn[tensor.name] = torch.randn(shape, generator=generator)
    return drawn


def commit(run: RunDir, step: int, weights: Tensors, *, stage: int = 3, ranks: int = 3) -> Path:
    """Commit the weights as a checkpoint of a ZeRO stage, or of FSDP (stage 0)."""
    partial = checkpoints.begin(run.checkpoints, step, 1)
    shards = partial / (f"zero{stage}" if stage else "fsdp")
    shards.mkdir()
    {0: _write_dcp, 3: _write_sharded}.get(stage, _write_grouped)(shards, weights, ranks)
    entries = checkpoints.seal_files(partial, [path for path in partial.rglob("*") if path.is_file()], 0)
    return checkpoints.commit(run.checkpoints, checkpoints.make_manifest(step, 1, ranks, {}, entries))


def _write_sharded(directory: Path, weights: Tensors, ranks: int) -> None:
    """ZeRO-3: each tensor cut evenly over the ranks and padded; a rank's parts in two sub-groups."""
    for rank in range(ranks):
        parts = []
        for tensor in weights.values():
            each = math.ceil(tensor.numel() / ranks)
            padded = torch.cat([tensor.flatten(), torch.full((each * ranks - tensor.numel(),), torch.nan)])
            parts.append(padded[rank * each : (rank + 1) * each].clone())
        half = len(parts) // 2
        flats = [torch.cat(parts[:half]), torch.cat(parts[half:])]
        _write_rank(directory, rank, {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": flats})
        _write_states(directory / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", [weights])


def _write_grouped(directory: Path, weights: Tensors, ranks: int) -> None:
    """ZeRO-1 and 2: matrices and vectors each as one vector, padded to twice the ranks and cut."""
    groups = [{n: w for n, w in weights.items() if (w.dim() > 1) == matrices} for matrices in (True, False)]
    vectors = []
    for group in groups:
        flat = torch.cat([weight.flatten() for weight in group.values()])
        vectors.append(torch.cat([flat, torch.full((-len(flat) % (2 * ranks),), torch.nan)]))
    for rank in range(ranks):
        flats = [vector.chunk(ranks)[rank].clone() for vector in vectors]
        state = {"zero_stage": 2, "partition_count": [ranks] * 2, "single_partition_of_fp32_groups": flats}
        _write_rank(directory, rank, state)
    _write_states(directory / "mp_rank_00_model_states.pt", groups)


def _write_rank(directory: Path, rank: int, state: dict[str, Any]) -> None:
    name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, directory / name)


def _write_states(path: Path, groups: list[Tensors]) -> None:
    shapes = [{name: weight.shape for name, weight in group.items()} for group in groups]
    torch.save(
        {
            "module": {}, "buffer_names": [], "param_shapes": shapes, "shared_params": {}, "frozen_param_shapes": {},
            "frozen_param_fragments": {}, "ds_version": "0.19.8",
        }, path,
    )  # fmt: skip


def _write_dcp(directory: Path, weights: Tensors, ranks: int) -> None:
    import torch.distributed.checkpoint as dcp

    state = {"model": weights, "optim": {"state": {name: {"step": torch.zeros(())} for name in weights}}}
    dcp.save(state, checkpoint_id=directory, no_dist=True)
