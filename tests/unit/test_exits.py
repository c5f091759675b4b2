"""train.exits: each kind of end has the code and name that the supervisor's policy expects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fullft_cluster.checkpoints import FencedError
from fullft_cluster.errors import RunFailedError, UsageError
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import exits


class OutOfMemoryError(RuntimeError):
    """Stands for torch.OutOfMemoryError."""


class DistBackendError(RuntimeError):
    """Stands for torch.distributed.DistBackendError."""


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UsageError("x"), 93, "config"),
        (exits.DataFault("x"), 93, "data"),
        (exits.CheckpointFault("x"), 93, "checkpoint"),
        (exits.NotFiniteError("x"), 93, "nan"),
        (ModuleNotFoundError("No module named 'deepspeed'"), 93, "config"),
        (FencedError("x"), 1, "fenced"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1, "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "oom"),
        (MemoryError(), 1, "oom"),
        (DistBackendError("NCCL error in: ..."), 1, "communication"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), 1, "communication"),
        (ConnectionResetError(104, "Connection reset by peer"), 1, "communication"),
        (RunFailedError("x"), 1, "other"),
        (OSError(28, "No space left on device"), 1, "other"),
        (RuntimeError("shape mismatch"), 1, "other"),
        (KeyboardInterrupt(), 1, "other"),
    ],
)
def test_classify(error: BaseException, code: int, kind: str) -> None:
    assert exits.classify(error) == (code, kind)


def test_report_is_written_whole(tmp_path: Path) -> None:
    report = exits.ExitReport(
        rank=3, exit_code=75, kind="stopped", message="m", step=7, resumed_from=None, committed_step=7
    )
    report.write(RunDir(tmp_path), attempt=2)
    assert json.loads((tmp_path / "exits" / "attempt-2" / "rank-3.json").read_text()) == {
        "rank": 3, "exit_code": 75, "kind": "stopped", "message": "m", "step": 7, "resumed_from": None,
        "committed_step": 7,
    }  # fmt: skip
