"""Chunks of rows that can be read again alone: where each begins in its source, and how many rows it has.

For data that is streamed. A chunk lies in one source; how the sources are mixed is a matter of the order of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from fullft_cluster.config import DataConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen
from fullft_cluster.row_files import RawRow, kind_of, lines_from, read_json
from fullft_cluster.row_formats import Reader
from fullft_cluster.row_sources import RowSource, files_of, is_seen, sources_of
from fullft_cluster.rows import MAX_PROBLEMS, check_files, parse
from fullft_cluster.samples import BadRow, Sample
from fullft_cluster.train.shards import SHARD_CHARACTERS, SHARD_ROWS, size_of
from fullft_cluster.train.sources import hub_rows, parquet_rows


class Place(NamedTuple):
    """A place between two rows of a source."""

    file: int = 0
    """Number of the file; of a data set on the hub 0."""
    row: int = 0
    """Rows (lines, of JSON lines) before it in the file."""
    offset: int = 0
    """Bytes before it in a file of JSON lines."""


class Chunk(Frozen, frozen=True, array_like=True):
    """Some rows of a source, one after the other."""

    source: int
    turn: int
    """The how manieth time (from 0) the source is gone through in an epoch: its weight may be above 1."""
    place: tuple[int, int, int]
    """Where it begins (`Place`)."""
    rows: int
    """Those that cannot be used, too."""


def rows_from(
    source: RowSource, files: Sequence[Path], place: Place, *, streaming: bool
) -> Iterator[tuple[Place, RawRow]]:
    """Yield the rows of a source, whose `files` are known, behind a place, each with the place behind it.

    Raises UsageError.
    """
    if source.kind == "hub":
        for number, row in enumerate(hub_rows(source, streaming=streaming, skip=place.row), start=place.row + 1):
            yield Place(0, number), row
        return
    for number, path in enumerate(files[place.file :], start=place.file):
        begin = place if number == place.file else Place(number)
        kind = kind_of(path, source.key)
        if kind == "jsonl":
            with path.open("rb") as file:
                file.seek(begin.offset)
                for line, row in lines_from(file, path, begin.row):
                    yield Place(number, line, file.tell()), row
            continue
        parquet = kind == "parquet"
        rows = parquet_rows(path, begin.row) if parquet else islice(read_json(path, source.key), begin.row, None)
        for at, row in enumerate(rows, start=begin.row + 1):
            yield Place(number, at), row


class Chunks:
    """Cuts the rows of all sources into chunks; knows where each begins once they have been gone through."""

    def __init__(self, data: DataConfig, seed: int, drop: Callable[[str], None]) -> None:
        """`drop` is called with the place of each row that is passed over."""
        self._sources, self._data, self._seed, self._drop = sources_of(data), data, seed, drop
        self._bad: list[Problem] = []
        self.found: list[Chunk] = []
        self.formats: list[str] = []
        """What the rows of each source are."""
        self.chats = False

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield the samples of each chunk. Raises UsageError for bad rows, at the end, unless they are skipped."""
        check_files(self._sources)
        for number, source in enumerate(self._sources):
            reader = Reader(source.format, source.fields, train_on_inputs=self._data.train_on_inputs)
            good = 0
            for turn in range(source.copies):
                for samples in self._of(number, turn, reader):
                    good += len(samples)
                    yield samples
            self.formats.append(reader.format)
            if not good:
                raise UsageError([*self._bad, Problem(source.path, "has no row that can be used")])
        if self._data.on_bad_row == "error" and self._bad:
            raise UsageError(self._bad)

    def index(self, blocks: Iterable[int]) -> Index:
        """Return the index of all chunks, each of which is packed into so many blocks."""
        return Index(
            formats=tuple(self.formats), sizes=sizes_of(self._sources), chunks=tuple(self.found), blocks=tuple(blocks)
        )

    def _of(self, number: int, turn: int, reader: Reader) -> Iterator[list[Sample]]:
        """Yield the samples of each chunk of one source in one turn."""
        source = self._sources[number]
        begin = here = Place()
        samples: list[Sample] = []
        rows = characters = 0
        files = list_files(source)
        for place, raw in rows_from(source, files, begin, streaming=self._data.streaming):
            row = parse(raw, reader)
            size = size_of(row) if isinstance(row, Sample) else 0
            if samples and (len(samples) == SHARD_ROWS or characters + size > SHARD_CHARACTERS):
                self.found.append(Chunk(number, turn, (*begin,), rows))
                yield samples
                begin, samples, rows, characters = here, [], 0, 0
            here, rows = place, rows + 1
            if isinstance(row, BadRow):
                self._count(row, turn)
            elif is_seen(row, source, turn, self._seed):
                samples.append(row)
                characters += size
                self.chats = self.chats or bool(row.messages)
        if samples:
            self.found.append(Chunk(number, turn, (*begin,), rows))
            yield samples

    def _count(self, row: BadRow, turn: int) -> None:
        if turn:
            return
        if len(self._bad) < MAX_PROBLEMS:
            self._bad.append(row.problem)
        if self._data.on_bad_row == "skip":
            self._drop(row.problem.where)
        elif len(self._bad) >= MAX_PROBLEMS:
            raise UsageError([*self._bad, Problem("data", f"gave up after {MAX_PROBLEMS} bad rows")])


def list_files(source: RowSource) -> list[Path]:
    """Return the files of a source; none where it is a data set on the hub. Raises UsageError where there are none."""
    return [] if source.kind == "hub" else files_of(source)


def read_chunk(chunk: Chunk, source: RowSource, files: Sequence[Path], data: DataConfig, seed: int) -> list[Sample]:
    """Return the samples of one chunk; `source` has the format that was found. Raises UsageError."""
    reader = Reader(source.format, source.fields, train_on_inputs=data.train_on_inputs)
    rows = islice(rows_from(source, files, Place(*chunk.place), streaming=data.streaming), chunk.rows)
    parsed = (parse(raw, reader) for _, raw in rows)
    return [row for row in parsed if isinstance(row, Sample) and is_seen(row, source, chunk.turn, seed)]


class Index(Frozen, frozen=True, kw_only=True):
    """index.json: the chunks of all sources."""

    formats: tuple[str, ...]
    """Of the rows of each source."""
    sizes: tuple[tuple[int, ...], ...]
    """Bytes of each source's files, by which a change is seen."""
    chunks: tuple[Chunk, ...]
    blocks: tuple[int, ...]
    """Blocks that each chunk is packed into."""


def sizes_of(sources: Sequence[RowSource]) -> tuple[tuple[int, ...], ...]:
    """Return the bytes of each source's files. Raises UsageError where there are none."""
    return tuple(tuple(path.stat().st_size for path in list_files(source)) for source in sources)


def decode_index(raw: bytes) -> Index:
    """Return an index.json. Raises msgspec.DecodeError."""
    return msgspec.json.decode(raw, type=Index)
