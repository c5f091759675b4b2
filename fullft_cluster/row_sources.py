"""The noun RowSource: one place that rows come from, found in the configuration, and the files that it stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from fullft_cluster.config import DataConfig, Format, Source
from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.hub import HUB_ID
from fullft_cluster.plan import Frozen
from fullft_cluster.samples import Sample

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet")
"""Of the files that rows usually lie in: only for names, never for what a file holds."""
FIELDS = (
    "text", "prompt", "completion", "messages", "instruction", "input", "output", "question", "answer",
    "role", "content",
)  # fmt: skip
"""What data.fields can map: the keys of a row, and `role` and `content` of a chat's message."""
_BESIDE = ("readme", "license", "licence", "notice", "changelog")
"""Names (without suffix) of files that lie beside data, and hold none."""

Kind = Literal["file", "directory", "hub"]


class RowSource(Frozen, frozen=True, kw_only=True):
    """One of the places that rows come from, with every default filled in."""

    key: str
    """Where the configuration names it: `data.train`, `data.sources[1].path`, `data.validation`."""
    path: str
    format: Format = "auto"
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    weight: float = 1.0
    split: str | None = "train"
    """Of a data set on the hub; None: `validation`, else `test`."""
    subset: str | None = None

    @property
    def kind(self) -> Kind:
        """Return what the path stands for: what is on this machine's disk, else a hub id that looks like one."""
        if is_hub_id(self.path):
            return "hub"
        return "directory" if _is(self.local, Path.is_dir) else "file"

    @property
    def local(self) -> Path:
        """Return the path as one of this machine."""
        try:
            return Path(self.path).expanduser()
        except RuntimeError:  # ~user
            return Path(self.path)

    @property
    def copies(self) -> int:
        """Return how often it is gone through in an epoch."""
        return -int(-self.weight // 1)


def is_hub_id(path: str) -> bool:
    """Return whether a path is the id of a data set on the hub: it looks like one, and nothing here has its name."""
    looks = HUB_ID.fullmatch(path) and not path.lower().endswith(SUFFIXES)
    return bool(looks) and not _is(Path(path), Path.exists)


def _is(path: Path, test: Callable[[Path], bool]) -> bool:
    """Return what a test of a path says; False for one that cannot be looked at (the reader says why)."""
    try:
        return test(path)
    except (OSError, ValueError):  # a name too long, a directory that is closed to us, a NUL byte
        return False


def sources_of(data: DataConfig, *, validation: bool = False) -> tuple[RowSource, ...]:
    """Return where the training rows come from, or those that the loss is evaluated on (none where none are named).

    Raises UsageError with every problem: both `train` and `sources`, neither, fields that are none of ours.
    """
    if problems := list(_problems(data)):
        raise UsageError(problems)
    if validation:
        return tuple(_validation(data))
    if data.train is not None:
        return (RowSource(key="data.train", path=data.train, format=data.format, fields=data.fields),)
    return tuple(
        RowSource(
            key=f"data.sources[{number}].path",
            path=source.path,
            format=source.format or data.format,
            fields=data.fields if source.fields is None else source.fields,
            weight=source.weight,
            split=source.split,
            subset=source.subset,
        )
        for number, source in enumerate(data.sources)
    )


def _validation(data: DataConfig) -> Iterator[RowSource]:
    """Yield what the loss is evaluated on; of a data set that is trained on too, the same subsets in the same form."""
    if data.validation is None:
        return
    same = [source for source in data.sources if source.path == data.validation] or [Source(path=data.validation)]
    seen: set[str | None] = set()
    for source in same:
        if source.subset not in seen:
            seen.add(source.subset)
            yield RowSource(
                key="data.validation",
                path=data.validation,
                format=source.format or data.format,
                fields=data.fields if source.fields is None else source.fields,
                split=None,
                subset=source.subset,
            )


def _problems(data: DataConfig) -> Iterator[Problem]:
    if data.train is not None and data.sources:
        fix = "Keep one of them: data.sources can name the file of data.train too."
        yield Problem("data.train", "is given beside data.sources", fix)
    if data.train is None and not data.sources:
        yield Problem("data.train", "is missing", "Write --data train.jsonl.")
    named = [("data.fields", data.fields)]
    named += [(f"data.sources[{n}].fields", source.fields or {}) for n, source in enumerate(data.sources)]
    for key, fields in named:
        for name in fields:
            if name not in FIELDS:
                fix = f"{did_you_mean(name, FIELDS)} It maps our name of a field to the rows' name of it."
                yield Problem(f"{key}.{name}", "is no field of ours", fix)


def files_of(source: RowSource) -> list[Path]:
    """Return the files of a source on this machine, sorted by path. Raises UsageError where there are none.

    Of a directory all files count, of its directories too, but hidden ones, those that begin with an underscore
    (Spark's `_SUCCESS`), empty ones, and a README or a license. Others that hold no rows are for the reader to refuse.
    """
    path = source.local
    if source.kind != "directory":
        return [path]
    try:
        found = sorted(file for file in path.rglob("*") if file.is_file() and _counts(file, path))
    except OSError as error:
        raise UsageError(Problem(str(path), f"cannot be read ({error.strerror})", "Check its permissions.")) from None
    if not found:
        fix = f"{source.key} takes a directory of {', '.join(SUFFIXES)} files."
        raise UsageError(Problem(str(path), "has no files with rows", fix))
    return found


def _counts(file: Path, root: Path) -> bool:
    """Return whether a file of a directory is one of its data files."""
    if any(part.startswith((".", "_")) for part in file.relative_to(root).parts):
        return False
    if file.suffix.lower() == ".md" or file.stem.lower() in _BESIDE:
        return False
    return file.stat().st_size > 0


def data_name(data: DataConfig) -> str:
    """Return a short name of the training data, for the name of a run."""
    paths = [data.train] if data.train else [source.path for source in data.sources]
    if not paths:
        return "data"
    path = Path(paths[0])
    name = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return f"{name}-and-more" if len(paths) > 1 else name


# --- weights


def is_seen(sample: Sample, source: RowSource, turn: int, seed: int) -> bool:
    """Return whether a row is seen when its source is gone through for the turn-th time (from 0).

    Of weight 2.5 every row is seen in turns 0 and 1, and in turn 2 those whose hash is in the lower half. The hash is
    of the row itself: what is chosen stays so when rows are added or reordered.
    """
    share = source.weight - turn
    return share >= 1 or uniform(sample, f"weight {seed}") < share


def uniform(sample: Sample, salt: str) -> float:
    """Return a number from 0 to 1 that is the same for the same row and salt everywhere, and evenly spread."""
    text = msgspec.json.encode((salt, sample.prompt, sample.completion, sample.messages), order="sorted")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2.0**64
