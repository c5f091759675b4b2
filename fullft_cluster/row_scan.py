"""The noun RowScan: what a login node finds out about the training data before anything is queued."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fullft_cluster.config import DataConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen
from fullft_cluster.row_files import RawRow, kind_of, read_json
from fullft_cluster.row_formats import Reader
from fullft_cluster.row_probe import probe
from fullft_cluster.row_sources import RowSource, files_of, sources_of
from fullft_cluster.rows import MAX_PROBLEMS, check_files, no_rows, parse
from fullft_cluster.samples import Sample

MAX_BYTES = 256_000_000
"""Of a source's files that are read whole: some seconds on a shared file system."""
HEAD_BYTES = 16_000_000
"""Of a source beyond that, read from the heads of its files: finds a wrong format at once, and estimates the rows."""
SHOWN = 3
"""Bad rows that are shown where they are passed over."""


class SourceScan(Frozen, frozen=True, kw_only=True):
    """What is known of one source."""

    path: str
    format: str = ""
    """What its rows are; empty where they were not looked at."""
    rows: int | None = None
    """Those that can be used; None where they cannot be read here."""
    exact: bool = True
    """Every row was checked; False where the rows are estimated from the head of a large file."""
    text_bytes: int | None = None
    """UTF-8 bytes of the text of the rows."""
    weight: float = 1.0
    bad: tuple[Problem, ...] = ()
    """The first of the rows that are passed over."""
    bad_rows: int = 0
    unread: str = ""
    """Why the rows are not known: `Parquet`, `a data set on the hub`, `not seen from here`."""
    for_tests: tuple[str, ...] = ()
    """Files of a directory that are trained on, and whose names are those of a split for tests."""

    @property
    def words(self) -> str:
        """Return the scan in words: ``alpaca, 7,473 rows``."""
        if self.rows is None:
            return f"{self.unread}: its rows are counted, and checked, when the data is prepared"
        count = f"{'' if self.exact else 'about '}{self.rows:,} row{'' if self.rows == 1 else 's'}"
        weight = "" if self.weight == 1 else f", weight {self.weight:g}"
        bad = f", {self.bad_rows:,} passed over" if self.bad_rows else ""
        return f"{self.format}, {count}{weight}{bad}"


class RowScan(Frozen, frozen=True, kw_only=True):
    """What is known of all of the data."""

    sources: tuple[SourceScan, ...]
    validation: tuple[SourceScan, ...] = ()
    validation_fraction: float = 0.0

    @property
    def rows(self) -> int | None:
        """Return the rows that are trained on in an epoch; None where a source's are not known."""
        return self._sum([source.rows for source in self.sources])

    @property
    def text_bytes(self) -> int | None:
        """Return the bytes of the text of those rows."""
        return self._sum([source.text_bytes for source in self.sources])

    def _sum(self, values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not values:
            return None
        total = sum(value * source.weight for value, source in zip(known, self.sources, strict=True))
        return max(round(total * (1 - self.validation_fraction)), 1)

    @property
    def notes(self) -> list[str]:
        """Return what the user should know: what the rows were taken for, how many, and which are passed over."""
        return [*_notes("data", self.sources), *_notes("validation", self.validation)]


def _notes(label: str, scans: tuple[SourceScan, ...]) -> Iterator[str]:
    for scan in scans:
        many = len(scans) > 1 or scan.rows is None
        yield f"{label}: {f'{scan.path}: ' if many else ''}{scan.words}"
        yield from (f"{label}: passed over: {problem}" for problem in scan.bad[:SHOWN])
        for path in scan.for_tests[:SHOWN] if label == "data" else ():
            yield f"{label}: {path} is trained on too, and its name is that of a split for tests"


def scan_data(data: DataConfig, is_elsewhere: Callable[[str], bool] = lambda path: False) -> RowScan:
    """Look at the sources of a run. Raises UsageError with everything that is wrong, up to 20 bad rows.

    ``is_elsewhere`` says of a path that it lies on a volume that is not mounted here. Of sources above `MAX_BYTES`
    only the head of each file is checked.
    """
    sources, validation = sources_of(data), sources_of(data, validation=True)
    check_files(source for source in (*sources, *validation) if not is_elsewhere(source.path))
    problems: list[Problem] = []
    scans = []
    for source in (*sources, *validation):
        try:
            scan, wrong = _unread(source, "not seen from here") if is_elsewhere(source.path) else _scan(source, data)
            scans.append(scan)
            problems += wrong
        except UsageError as error:  # a file that is damaged
            problems += error.problems
    if problems:
        more = [Problem("data", f"gave up after {MAX_PROBLEMS} bad rows")] if len(problems) >= MAX_PROBLEMS else []
        raise UsageError([*problems[:MAX_PROBLEMS], *more])
    return RowScan(
        sources=tuple(scans[: len(sources)]),
        validation=tuple(scans[len(sources) :]),
        validation_fraction=data.validation_fraction,
    )


Scanned = tuple[SourceScan, list[Problem]]


def _scan(source: RowSource, data: DataConfig) -> Scanned:
    """Return what is known of one source from here, and what is wrong with it."""
    if source.kind == "hub":
        return _unread(source, "a data set on the hub")
    if any(kind_of(path, source.key) == "parquet" for path in files_of(source)):
        found = probe(source, data)
        return msgspec.convert(found, Scanned) if found is not None else _unread(source, "Parquet")
    return scan_source(source, data, read_json)


def _unread(source: RowSource, why: str) -> Scanned:
    return SourceScan(path=source.path, weight=source.weight, unread=why), []


@dataclass
class _Found:
    """What was counted of a source so far."""

    rows: float = 0
    text_bytes: float = 0
    bad_rows: int = 0
    bad: list[Problem] = field(default_factory=list)


def scan_source(source: RowSource, data: DataConfig, read_file: Callable[[Path, str], Iterator[RawRow]]) -> Scanned:
    """Look at the files of one source; return what was found, and what is wrong."""
    files = files_of(source)
    found = _Found()
    whole = sum(path.stat().st_size for path in files) <= MAX_BYTES
    limit = MAX_BYTES if whole else HEAD_BYTES // len(files)
    reader = Reader(source.format, source.fields, train_on_inputs=data.train_on_inputs)
    for path in files:
        _look(read_file(path, source.key), path.stat().st_size, (reader, limit), found)
        if len(found.bad) >= MAX_PROBLEMS and data.on_bad_row == "error":
            break
    scan = SourceScan(
        path=source.path, format=reader.format, rows=round(found.rows), exact=whole, weight=source.weight,
        text_bytes=round(found.text_bytes), bad=tuple(found.bad), bad_rows=found.bad_rows,
        for_tests=tuple(str(path) for path in files if len(files) > 1 and _is_for_tests(path, source.local)),
    )  # fmt: skip
    return scan, _wrong(source.path, found, data)


def _look(raws: Iterator[RawRow], size: int, how: tuple[Reader, int], found: _Found) -> None:
    """Count the rows of one file of that size (bytes) up to a limit; what follows is taken to be alike."""
    reader, limit = how
    read = 0.0
    rows = text_bytes = 0
    share = 1.0
    for raw in raws:
        if read > limit:
            share = size / read
            break
        read += raw.size
        row = parse(raw, reader)
        if isinstance(row, Sample):
            rows += 1
            text_bytes += len(row.prompt.encode()) + len(row.completion.encode())
            text_bytes += sum(len(message["content"].encode()) for message in row.messages)
            continue
        found.bad_rows += 1
        if len(found.bad) < MAX_PROBLEMS:
            found.bad.append(row.problem)
    found.rows += rows * share
    found.text_bytes += text_bytes * share


def _is_for_tests(path: Path, root: Path) -> bool:
    """Return whether a file is of a split for tests by its name, as in `data/test-00000-of-00001.parquet`."""
    words = re.split(r"[^a-z]+", str(path.relative_to(root)).lower())
    return not {"test", "validation", "valid", "val", "dev", "eval"}.isdisjoint(words)


def _wrong(path: str, found: _Found, data: DataConfig) -> list[Problem]:
    """Return what is an error of what was found."""
    if not found.rows and not found.bad_rows:
        return [no_rows(path)]
    if data.on_bad_row == "error":
        return found.bad
    return [] if found.rows else [*found.bad, Problem(path, "has no row that can be used")]
