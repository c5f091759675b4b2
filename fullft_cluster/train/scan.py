"""Scans one source that needs pyarrow, for a login node.

    python -m fullft_cluster.train.scan  < REQUEST

A `row_probe.Request` as JSON on stdin; on stdout the `SourceScan`, and the problems, as JSON.
"""

from __future__ import annotations

import sys

import msgspec

from fullft_cluster.errors import UsageError
from fullft_cluster.row_probe import Request
from fullft_cluster.row_scan import SourceScan, scan_source
from fullft_cluster.train.sources import read_file


def main() -> int:
    """Answer one request; return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        found = scan_source(request.source, request.data, read_file)
    except UsageError as error:
        found = SourceScan(path=request.source.path), list(error.problems)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
