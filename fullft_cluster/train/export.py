"""Weights that `from_pretrained` loads: consolidated, written, reopened, compared, and only then renamed to export/."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.rundir import fsync_path, read_json, write_json
from fullft_cluster.train import comm
from fullft_cluster.train.engine import Engine
from fullft_cluster.train.setup import Job
from fullft_cluster.train.tokenizer import load_tokenizer

MARK = "fullft_cluster.json"
"""Says of which run and step the export is."""


def export(job: Job, engine: Engine, step: int) -> Path:
    """Export the weights after `step` steps (a collective) and return the directory; nothing to do when it is there.

    Raises RunFailedError when what was written does not read back as what was trained.
    """
    final = job.run.export
    if comm.on_rank_zero(lambda: (read_json(final / MARK) or {}).get("step") == step):
        return final
    weights = engine.consolidate()

    def write() -> None:
        if weights is None:
            raise RunFailedError("rank 0 has no consolidated weights")
        partial = final.with_name("export.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _save(job, engine.model(), weights, partial)
        check(partial, weights, tied=bool(engine.model().config.tie_word_embeddings))
        write_json(partial / MARK, {"run": job.run.name, "step": step})
        _make_durable(partial)
        _publish(partial, final)

    comm.on_rank_zero(write)
    return final


def _save(job: Job, model: Any, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Write safetensors shards, config, generation config and tokenizer."""
    tokenizer = load_tokenizer(job.config)
    # A model made from a config alone does not know its tokenizer's special tokens, and would never stop generating.
    for config in (model.config, model.generation_config):
        config.eos_token_id = _end_tokens(config.eos_token_id, tokenizer.eos_token_id)
        config.bos_token_id = tokenizer.bos_token_id
        if tokenizer.pad_token_id is not None:
            config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = True
    # A copy: it takes each tensor out of the dict that it writes from.
    model.save_pretrained(directory, state_dict=dict(weights))
    tokenizer.save_pretrained(directory)
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.iterdir():  # safetensors makes its files readable by their owner alone
        path.chmod(0o666 & ~mask)


def _end_tokens(known: int | list[int] | None, trained: int) -> int | list[int]:
    """Return the ids that end a text: the one that training ended rows with, and those the weights came with."""
    others = [known] if isinstance(known, int) else list(known or [])
    merged = [trained, *(token for token in others if token != trained)]
    return merged if isinstance(known, list) else trained


def check(directory: Path, weights: dict[str, torch.Tensor], *, tied: bool) -> None:
    """Reopen an export and compare every tensor's shape, type and first row with the weights. Raises RunFailedError."""
    from safetensors import safe_open

    seen: set[str] = set()
    wrong: list[str] = []
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                seen.add(name)
                want, got = weights.get(name), file.get_slice(name)
                if want is None:
                    wrong.append(f"{name} was not trained")
                elif list(got.get_shape()) != list(want.shape) or not torch.equal(got[:1], want[:1]):
                    wrong.append(f"{name} differs")
    missing = [name for name in weights if name not in seen and not (tied and name == "lm_head.weight")]
    wrong += [f"{name} is missing" for name in missing]
    index = directory / "model.safetensors.index.json"
    if index.exists() and set(json.loads(index.read_text())["weight_map"]) != seen:
        wrong.append("the index does not list the tensors of the shards")
    if wrong:
        raise RunFailedError(Problem(str(directory), "the export does not read back: " + "; ".join(wrong[:5])))


def _make_durable(directory: Path) -> None:
    for path in directory.iterdir():
        fsync_path(path)
    fsync_path(directory)


def _publish(partial: Path, final: Path) -> None:
    """Rename the new export into place; one of another step makes room for it first."""
    older = final.with_name("export.old")
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        final.rename(older)
    partial.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(older, ignore_errors=True)
