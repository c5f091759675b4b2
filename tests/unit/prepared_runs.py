"""Runs whose data is prepared in tests, and what is in a cache."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import yaml

from fullft_cluster.resources import share
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import data
from fullft_cluster.train.data import PackedData

SAMPLE = share("configs") / "sample"


def make_run(tmp_path: Path, text: str | bytes, *, name: str = "run", seq_len: int = 32, **settings: object) -> RunDir:
    """Make a run whose data is this text; further settings are of `data`."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    run = RunDir(tmp_path / "runs" / name)
    run.make()
    config = {
        "model": "tiny", "weights": "random", "train": {"seq_len": seq_len},
        "data": {"train": str(path), "cache_dir": str(tmp_path / "cache"), **settings},
    }  # fmt: skip
    run.config.write_text(yaml.safe_dump(config))
    return run


def documents_of(cache: Path) -> list[list[int]]:
    """Return the documents of a cache, sorted."""
    packed = PackedData(cache)
    starts = [*np.load(cache / data.STARTS), packed.meta.tokens]
    tokens = np.fromfile(cache / data.TOKENS, dtype=packed.meta.dtype)
    return sorted(tokens[begin:end].tolist() for begin, end in itertools.pairwise(starts))


def sample_text(rows: int) -> str:
    return "".join((SAMPLE / "train.jsonl").open().readlines()[:rows])
