"""All sources of rows, Parquet and the hub too: what the preparation of the data, and streaming, read.

Parquet is read by pyarrow, a few thousand rows at a time; a data set on the hub (or in its cache) by
`datasets.load_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from fullft_cluster.config import DataConfig, TrainConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.row_files import RawRow, kind_of, read_json
from fullft_cluster.row_sources import RowSource, sources_of
from fullft_cluster.rows import check_files, no_rows, open_files, read_rows
from fullft_cluster.samples import BadRow, Sample

ROWS_AT_ONCE = 1024
"""Rows of Parquet or of a data set that are made Python objects together."""
UNKNOWN_ROWS = 1_000_000
"""Taken for the length of a stream that does not tell its own; only how sources are mixed depends on it."""
SEED: int = TrainConfig().seed


def read_samples(data: DataConfig, *, validation: bool, seed: int = SEED) -> Iterator[Sample | BadRow]:
    """Yield the training rows, or those that the loss is evaluated on, of every kind of source.

    ``seed`` (train.seed) chooses the rows of a source whose weight is no whole number. See `rows.read_rows` for what
    comes of bad rows: none must be used before the iterator has ended, unless they are skipped. Raises UsageError.
    """
    sources = sources_of(data, validation=validation)
    check_files(sources)
    yield from read_rows(sources, data, partial(open_source, streaming=data.streaming), seed)


def open_source(source: RowSource, *, streaming: bool = False) -> Iterator[RawRow]:
    """Yield the rows of one source as they lie there. Raises UsageError."""
    if source.kind == "hub":
        return hub_rows(source, streaming=streaming)
    return open_files(source, lambda path: read_file(path, source.key))


def read_file(path: Path, key: str) -> Iterator[RawRow]:
    """Yield the rows of a file of any kind. Raises UsageError."""
    return parquet_rows(path) if kind_of(path, key) == "parquet" else read_json(path, key)


def parquet_rows(path: Path, skip: int = 0) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file behind the first `skip`. Raises UsageError where it is damaged."""
    import pyarrow
    import pyarrow.parquet

    numbers = count(skip + 1)
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            size = path.stat().st_size / max(file.metadata.num_rows, 1)
            groups, skip = _groups_behind(file.metadata, skip)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups):
                rows = batch[skip:].to_pylist()
                skip = max(skip - len(batch), 0)
                for row in rows:
                    yield RawRow(f"{path}: row {next(numbers)}", row, size)
    except (pyarrow.ArrowException, OSError) as error:  # ArrowInvalid, and OSError for a page that is cut off
        said = str(error).splitlines()[0]
        where = f"{path}: row {next(numbers)}"
        raise UsageError(Problem(where, f"Parquet cannot be read ({said})", "Copy or write the file again.")) from None


def _groups_behind(metadata: Any, skip: int) -> tuple[list[int], int]:
    """Return the row groups that hold rows behind the first `skip`, and how many of their rows are to be skipped."""
    group = 0
    while group < metadata.num_row_groups and skip >= metadata.row_group(group).num_rows:
        skip -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), skip


def hub_rows(source: RowSource, *, streaming: bool = False, skip: int = 0) -> Iterator[RawRow]:
    """Yield the rows of a data set on the hub behind the first `skip`, from the cache where it is there.

    Raises UsageError.
    """
    split, rows = _load(source, streaming=streaming)
    name = f"{source.path}{f'/{source.subset}' if source.subset else ''}[{split}]"
    numbers = count(skip + 1)
    size = 1 / _length(rows, split)
    try:
        for batch in (rows.skip(skip) if skip else rows).iter(batch_size=ROWS_AT_ONCE):
            columns = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield RawRow(f"{name}: row {next(numbers)}", dict(zip(columns, values, strict=True)), size)
    except (OSError, ValueError) as error:
        raise UsageError(_not_loaded(source, error)) from None
    if next(numbers) == 1:
        raise UsageError(no_rows(name))


def _length(rows: Any, split: str) -> int:
    """Return the rows of a split; a guess where the hub does not say, for streams are not counted."""
    if hasattr(rows, "num_rows"):
        return max(rows.num_rows, 1)
    known = (rows.info.splits or {}).get(split)
    return (known.num_examples if known else 0) or UNKNOWN_ROWS


def hub_fingerprint(source: RowSource) -> str:
    """Return what tells one state of a data set from another: the commit on the hub, or that which the cache is of.

    Raises UsageError.
    """
    import datasets

    place, builder = _from_hub(source, datasets.load_dataset_builder)
    commit = Path(place).name if place != source.path else builder.hash
    return f"{source.path} {builder.config.name} {source.split} {commit}"


def _from_hub(source: RowSource, load: Callable[..., Any], **more: Any) -> tuple[str, Any]:
    """Return what `load` gives for a data set, and where it was loaded from: its id, or a snapshot in the cache.

    Without the hub `datasets` finds what it has prepared itself, but not what `hf download` brought. Raises UsageError.
    """
    import datasets
    from huggingface_hub import snapshot_download

    place = source.path
    try:
        try:
            return place, load(place, source.subset, **more)
        except ConnectionError as error:
            try:
                place = snapshot_download(place, repo_type="dataset", local_files_only=True)
            except (OSError, ValueError):  # LocalEntryNotFoundError is both
                raise error from None
            return place, load(place, source.subset, **more)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(_not_loaded(source, error)) from None


def _load(source: RowSource, *, streaming: bool) -> tuple[str, Any]:
    """Return the split that is read, and its rows: load_dataset gives all splits where none is named.

    Raises UsageError.
    """
    import datasets

    _, found = _from_hub(source, datasets.load_dataset, split=source.split, streaming=streaming)
    if source.split is not None:
        return source.split, found
    for name in ("validation", "test"):
        if name in found:
            return name, found[name]
    what = f"data set {source.path} has no split `validation` or `test`; it has {', '.join(found)}"
    raise UsageError(Problem(source.key, what, "Name a file, or set data.validation_fraction."))


def _not_loaded(source: RowSource, error: Exception) -> Problem:
    """Say why a data set could not be loaded, and what to do: the hub's library says it in several ways."""
    lines = str(error).splitlines() or [type(error).__name__]
    what = f"data set {source.path} cannot be loaded: {lines[0]}"
    if "Config name is missing" in str(error):
        names = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Please pick one")), "")
        first = names.strip("[]").split(",")[0].strip("' ") or "NAME"
        what = f"data set {source.path} has several subsets{f': {names}' if names else ''}"
        return Problem(source.key, what, f"Write data.sources: [{{path: {source.path}, subset: {first}}}].")
    if any(said in str(error) for said in ("Unknown split", "Bad split", "BuilderConfig")):
        return Problem(source.key, what, "Write split and subset beside its path in data.sources.")
    fix = f"Fetch it where there is internet: hf download --repo-type dataset {source.path} (HF_HOME on the shared "
    fix += "file system; HF_TOKEN where it needs a login), or give its files."
    if not source.local.parent.exists():
        fix = f"Check the path, if it is meant as one: there is no directory {source.local.parent} here. {fix}"
    return Problem(source.key, what, fix)
