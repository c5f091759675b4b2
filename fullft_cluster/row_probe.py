"""Has the training environment, where it is this one, look at sources that need a library of its own (Parquet)."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import msgspec

from fullft_cluster.config import DataConfig
from fullft_cluster.plan import Frozen
from fullft_cluster.row_sources import RowSource

SECONDS = 120
"""After which the rows stay unknown: they are counted when the data is prepared."""


class Request(Frozen, frozen=True, kw_only=True):
    """What `python -m fullft_cluster.train.scan` reads on stdin."""

    source: RowSource
    data: DataConfig


def probe(source: RowSource, data: DataConfig) -> Any:
    """Return what a scan found of a source as built-in values, or None where this environment cannot look at it.

    In a process of its own: training is reached by files and pipes alone, and a login node need not have pyarrow.
    """
    if find_spec("pyarrow") is None:
        return None
    command = [sys.executable, "-m", "fullft_cluster.train.scan"]
    asked = msgspec.json.encode(Request(source=source, data=data))
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=SECONDS, check=True)
        return msgspec.json.decode(done.stdout)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return None
