"""Scans one source that needs pyarrow, for a login node.

    python -m fullft_cluster.train.scan  < REQUEST

A `row_probe.Request` as JSON on stdin; on stdout the `SourceScan`, and the problems, as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from fullft_cluster.errors import UsageError
from fullft_cluster.row_files import kind_of
from fullft_cluster.row_probe import Request
from fullft_cluster.row_scan import Part, SourceScan, json_part, scan_source
from fullft_cluster.train.sources import parquet_rows


def parquet_part(path: Path, key: str) -> Part:
    """Return a file of Parquet, or of JSON beside it. Raises UsageError where it is damaged."""
    if kind_of(path, key) != "parquet":
        return json_part(path, key)
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError):
        rows = 0  # the reading of its rows says why
    size = path.stat().st_size
    return Part(parquet_rows(path), size, lambda raw: size / max(rows, 1))


def main() -> int:
    """Answer one request; return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        found = scan_source(request.source, request.data, parquet_part)
    except UsageError as error:
        found = SourceScan(path=request.source.path), list(error.problems)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
