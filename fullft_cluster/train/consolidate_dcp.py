"""The weights in a checkpoint of FSDP: torch's distributed checkpoint (DCP), loaded one tensor at a time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.train.consolidate import Weights

PREFIX = "model."
"""Of the weights among the checkpoint's keys; the optimizer's begin with `optim.`."""


class _Reader(FileSystemReader):
    """Reads the metadata once: it lists every shard of every tensor and moment, and each load asks for it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._metadata: Any = super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return self._metadata


class DcpWeights(Weights):
    """The fp32 weights that FSDP shards."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reader = _Reader(directory)
        self._found: dict[str, TensorStorageMetadata] = {
            key.removeprefix(PREFIX): entry
            for key, entry in self._reader.read_metadata().state_dict_metadata.items()
            if key.startswith(PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in self._found.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        entry = self._found[name]
        target = {PREFIX + name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # it tells what no_dist asks for
                dcp.load(target, storage_reader=self._reader, no_dist=True)
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            first = str(error).strip().split("\n", 1)[0]
            raise RunFailedError(Problem(str(self._directory), f"{name} cannot be read ({first})")) from None
        return target[PREFIX + name].float()

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Weights`; a shard is read whole."""
        return self.tensor(name).flatten()[start:stop]
