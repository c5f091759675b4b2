"""Rows of training data: every row of the sources as a Sample, or why not; and what a scan finds out beforehand.

No torch, no pyarrow: a login node checks JSON lines and JSON arrays here. `train.sources` reads the same sources with
Parquet and the hub besides. Every error names the file and the line, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fullft_cluster.config import DataConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.row_files import OBJECT_A_LINE, RawRow, decode, kind_of
from fullft_cluster.row_formats import EXAMPLES, Reader
from fullft_cluster.row_sources import RowSource, files_of, is_seen
from fullft_cluster.samples import BadRow, Sample

MAX_PROBLEMS = 20
"""So many are collected before giving up: enough to see the pattern, few enough to read."""

OpenSource = Callable[[RowSource], Iterator[RawRow]]
"""Yields the rows of a source as they lie there."""


def read_rows(
    sources: Iterable[RowSource], data: DataConfig, open_source: OpenSource, seed: int
) -> Iterator[Sample | BadRow]:
    """Yield the rows of all sources, as often as their weights say; those that cannot be used as BadRow, once each.

    Under `data.on_bad_row: error` none of those is yielded: up to `MAX_PROBLEMS` problems are collected over all
    sources, and raised as UsageError at once when that many are found, else at the end. Whoever consumes the rows must
    therefore not use them before the iterator has ended. A source without a good row is an error in either case.
    """
    strict = data.on_bad_row == "error"
    problems: list[Problem] = []
    for source in sources:
        first: list[Problem] = []
        good = 0
        for row in _weighted(source, data, open_source, seed):
            if isinstance(row, Sample):
                good += 1
                yield row
                continue
            if len(first) < MAX_PROBLEMS:
                first.append(row.problem)
            if not strict:
                yield row
                continue
            problems.append(row.problem)
            if len(problems) >= MAX_PROBLEMS:
                raise UsageError([*problems, Problem(source.path, f"gave up after {MAX_PROBLEMS} bad rows")])
        if not strict and first and not good:
            raise UsageError([*first, Problem(source.path, "has no row that can be used")])
    if problems:
        raise UsageError(problems)


def _weighted(source: RowSource, data: DataConfig, open_source: OpenSource, seed: int) -> Iterator[Sample | BadRow]:
    """Yield the rows of a source as often as its weight says, a whole turn at a time: copies lie far apart."""
    reader = Reader(source.format, source.fields, train_on_inputs=data.train_on_inputs)
    for turn in range(source.copies):
        for row in parse(open_source(source), reader):
            if isinstance(row, BadRow):
                if turn == 0:
                    yield row
            elif is_seen(row, source, turn, seed):
                yield row


def parse(raws: Iterable[RawRow], reader: Reader) -> Iterator[Sample | BadRow]:
    """Yield rows as samples, or why not."""
    for raw in raws:
        decoded = decode(raw)
        row = decoded if isinstance(decoded, Problem) else reader.read(raw.where, decoded)
        yield row if isinstance(row, Sample) else BadRow(row)


def open_files(source: RowSource, open_file: Callable[[Path], Iterator[RawRow]]) -> Iterator[RawRow]:
    """Yield the rows of a source's files, one file after the other. Raises UsageError where there are none."""
    rows = 0
    for path in files_of(source):
        for raw in open_file(path):
            rows += 1
            yield raw
    if not rows:
        raise UsageError(no_rows(source.path))


def no_rows(path: str) -> Problem:
    """Return the Problem with a source that is empty."""
    return Problem(path, "has no rows", f"{OBJECT_A_LINE.rstrip('.')}: {EXAMPLES['text']}")


def check_files(sources: Iterable[RowSource]) -> None:
    """Raise UsageError with everything that is wrong with the files of the sources, before any row is read."""
    problems: list[Problem] = []
    for source in sources:
        if source.kind == "hub":
            continue
        try:
            files = files_of(source)
        except UsageError as error:
            problems += error.problems
            continue
        for path in files:
            try:
                kind_of(path, source.key)
            except UsageError as error:
                problems += error.problems
    if problems:
        raise UsageError(problems[:MAX_PROBLEMS])
