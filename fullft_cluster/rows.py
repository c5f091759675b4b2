"""Rows of training data: every row of the sources as a Sample, or why not; and what a scan finds out beforehand.

No torch, no pyarrow: a login node checks JSON lines and JSON arrays here. `train.sources` reads the same sources with
Parquet and the hub besides. Every error names the file and the line, and what to write instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
    sources: Sequence[RowSource], data: DataConfig, open_source: OpenSource, seed: int
) -> Iterator[Sample | BadRow]:
    """Yield the rows of all sources, as often as their weights say; those that cannot be used as BadRow, once each.

    One source comes after the other; with `data.streaming` they are mixed in proportion, so that a run that ends
    early has seen all of them.

    Under `data.on_bad_row: error` no BadRow is yielded: up to `MAX_PROBLEMS` problems are collected over all sources,
    and raised as UsageError at once when that many are found, else at the end. Whoever consumes the rows must
    therefore not use them before the iterator has ended. A source without a good row is an error in either case.
    """
    tallies = [_Tally(source.path, strict=data.on_bad_row == "error") for source in sources]
    streams = [_weighted(source, data, open_source, seed) for source in sources]
    problems: list[Problem] = []
    for number, row in _mixed(streams) if data.streaming else _in_turn(streams):
        tally = tallies[number]
        if isinstance(row, Sample):
            tally.good += 1
            yield row
        elif row is None:
            tally.check_end()
        elif tally.strict:
            problems.append(row.problem)
            if len(problems) >= MAX_PROBLEMS:
                raise UsageError([*problems, Problem(tally.path, f"gave up after {MAX_PROBLEMS} bad rows")])
        else:
            tally.bad += [row.problem] if len(tally.bad) < MAX_PROBLEMS else []
            yield row
    if problems:
        raise UsageError(problems)


@dataclass
class _Tally:
    """What came of one source so far."""

    path: str
    strict: bool
    good: int = 0
    bad: list[Problem] = field(default_factory=list)

    def check_end(self) -> None:
        """Raise UsageError when the source has ended without a row that can be used."""
        if self.bad and not self.good:
            raise UsageError([*self.bad, Problem(self.path, "has no row that can be used")])


_Stream = Iterator[tuple[float, Sample | BadRow]]
"""Rows, each with how far its source is gone through before it, from 0 to 1."""
_Numbered = Iterator[tuple[int, Sample | BadRow | None]]
"""Rows with the number of their source; None at its end."""


def _in_turn(streams: list[_Stream]) -> _Numbered:
    for number, stream in enumerate(streams):
        yield from ((number, row) for _, row in stream)
        yield number, None


def _mixed(streams: list[_Stream]) -> _Numbered:
    """Yield from the stream that is behind all others: they end together, and each is evenly spread."""
    heads: list[tuple[float, int, Sample | BadRow | None]] = []
    for number, stream in enumerate(streams):
        done, row = next(stream, (1.0, None))
        heads.append((done, number, row))
    while heads:
        position = min(range(len(heads)), key=lambda at: heads[at][:2])
        _, number, row = heads.pop(position)
        yield number, row
        if row is not None:
            done, following = next(streams[number], (math.inf, None))
            heads.append((done, number, following))


def _weighted(source: RowSource, data: DataConfig, open_source: OpenSource, seed: int) -> _Stream:
    """Yield the rows of a source as often as its weight says, a whole turn at a time: copies lie far apart."""
    reader = Reader(source.format, source.fields, train_on_inputs=data.train_on_inputs)
    amount = 1.0 if source.kind == "hub" else float(sum(path.stat().st_size for path in files_of(source)))
    for turn in range(source.copies):
        read = 0.0
        part = min(source.weight - turn, 1)  # of the rows that are seen in this turn, and so of its length
        for raw in open_source(source):
            done = (turn + part * read / amount) / source.weight
            read += raw.size
            row = parse(raw, reader)
            if isinstance(row, BadRow):
                if turn == 0:
                    yield done, row
            elif is_seen(row, source, turn, seed):
                yield done, row


def parse(raw: RawRow, reader: Reader) -> Sample | BadRow:
    """Return a row as a sample, or why it is none."""
    decoded = decode(raw)
    row = decoded if isinstance(decoded, Problem) else reader.read(raw.where, decoded)
    return row if isinstance(row, Sample) else BadRow(row)


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
