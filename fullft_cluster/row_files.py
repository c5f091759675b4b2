"""Reads files of rows: what kind a file is by its content, and its rows as they are. No pyarrow, no numpy.

JSON lines are read a line at a time, an array of objects through a memory map; no row is loaded that is longer than
`MAX_ROW_BYTES`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.row_sources import SUFFIXES

MAX_ROW_BYTES = 8 << 20
"""Of one row: some two million tokens, far more than any sequence, and little enough to hold."""
HEAD_BYTES = 1 << 16
"""Read to tell what a file is."""
BOM = b"\xef\xbb\xbf"
"""The byte order mark that Windows' editors put before UTF-8."""

FileKind = Literal["jsonl", "json", "parquet"]
OBJECT_A_LINE = "Write one JSON object a line."

_MAGIC = {
    b"\x1f\x8b": ("gzip", "Decompress it: gunzip -c FILE > train.jsonl"),
    b"\x28\xb5\x2f\xfd": ("zstd", "Decompress it: zstd -d FILE -o train.jsonl"),
    b"BZh": ("bzip2", "Decompress it: bunzip2 -c FILE > train.jsonl"),
    b"\xfd7zXZ": ("xz", "Decompress it: xz -dc FILE > train.jsonl"),
    b"PK\x03\x04": ("a zip archive", "Unpack it and name the .jsonl file inside"),
    b"\xff\xfe": ("UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xff\xff\xff\xff": ("Arrow (of datasets' save_to_disk)", "Write Parquet: load_from_disk(DIR).to_parquet(FILE)"),
    b"ARROW1": ("Arrow", "Write it as Parquet: Dataset.from_file(FILE).to_parquet(FILE)"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the data", "Fetch the data: git lfs pull"),
    b"<": ("HTML or XML", "Download the data itself: it may need a login"),
}
_array = msgspec.json.Decoder(list[msgspec.Raw])


class RawRow(NamedTuple):
    """A row as it lies in its file."""

    where: str
    row: Any
    """The bytes of a JSON object, a dict, or the Problem with it."""
    size: float
    """Bytes that it takes of its file, at least about."""


Opener = Callable[[Path], Iterator[RawRow]]


def kind_of(path: Path, key: str) -> FileKind:
    """Return what a file is, by what it holds. Raises UsageError for one that cannot hold rows.

    ``key`` is where the configuration names it.
    """
    where = str(path)
    fix = f"{key} takes a file ({', '.join(SUFFIXES)}), a directory of them, or the id of a data set on the hub."
    try:
        if not path.exists():
            raise UsageError(Problem(where, "no such file", fix))
        if not path.is_file():
            raise UsageError(Problem(where, "is not a file", fix))
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            while head.isspace() and (more := file.read(HEAD_BYTES)):
                head = more
    except OSError as error:
        raise UsageError(Problem(where, f"cannot be read ({error.strerror})", "Check its permissions.")) from None
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, (name, way_out) in _MAGIC.items():
        if head.startswith(magic):
            raise UsageError(Problem(where, f"is {name}, not JSON lines", way_out))
    return "json" if head.removeprefix(BOM).lstrip().startswith(b"[") else "jsonl"


def read_json(path: Path, key: str) -> Iterator[RawRow]:
    """Yield the rows of a file of JSON lines or of a JSON array. Raises UsageError for another file."""
    if kind_of(path, key) == "json":
        yield from _array_rows(path)
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for _, row in lines_from(file, path):
            yield row


def lines_from(file: BinaryIO, path: Path, number: int = 0) -> Iterator[tuple[int, RawRow]]:
    """Yield the lines that are not blank with their numbers; of one that is too long, only that it is.

    They are read from where the file stands, which is behind line `number`; after each it stands behind that one.
    """
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_ROW_BYTES:
            length = len(line)
            while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                length += len(line)
            yield number, RawRow(where, too_long(where, length), length)
            continue
        if number == 1:
            line = line.removeprefix(BOM)
        if not line.isspace() and line:
            yield number, RawRow(where, line, len(line))


def too_long(where: str, length: int) -> Problem:
    """Return the Problem with a row of so many bytes."""
    what = f"row is {length / 2**20:.1f} MiB long, and the limit is {MAX_ROW_BYTES >> 20} MiB"
    return Problem(where, what, "Split it into several rows.")


def _array_rows(path: Path) -> Iterator[RawRow]:
    """Yield the items of a JSON array, each as its bytes. Raises UsageError where it is no array to its end."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last view
    view = memoryview(mapped)[len(BOM) if mapped[:3] == BOM else 0 :]
    try:
        items = _array.decode(view)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(_not_an_array(path, view, str(error))) from None
    for number, item in enumerate(items, start=1):
        where, row = f"{path}: row {number}", memoryview(item)
        yield RawRow(where, too_long(where, len(row)) if len(row) > MAX_ROW_BYTES else bytes(row), len(row))


def _not_an_array(path: Path, view: memoryview, said: str) -> Problem:
    """Say on which line a JSON array ends to be one."""
    if "recursion" in said:
        return Problem(str(path), "is nested too deeply", "Write an array of objects.")
    found = re.search(r"\(byte (\d+)\)", said)
    end = int(found[1]) if found else len(view)
    line = sum(bytes(view[at : min(at + (1 << 20), end)]).count(b"\n") for at in range(0, end, 1 << 20)) + 1
    if "trailing characters" in said:
        what = "more follows where the array of rows ends"
        return Problem(f"{path}:{line}", what, "Write one array of objects, or one object a line without an array.")
    said = "it ends in the middle of a row" if "truncated" in said else said.removeprefix("JSON is malformed: ")
    return Problem(f"{path}:{line}", f"not JSON ({said})", "Write an array of objects: [{...}, {...}].")


def decode(raw: RawRow) -> dict[str, Any] | Problem:
    """Return a row as a dict, or the Problem with it."""
    where, row, _ = raw
    if not isinstance(row, bytes):
        return row if isinstance(row, dict | Problem) else _no_object(where, b"", row)
    try:
        value = msgspec.json.decode(row)
    except UnicodeDecodeError:
        return _not_utf8(where, row)
    except RecursionError:
        return Problem(where, "row is nested too deeply", OBJECT_A_LINE)
    except (msgspec.DecodeError, ValueError) as error:
        return _not_json(where, row, str(error))
    return value if isinstance(value, dict) else _no_object(where, row, value)


def _not_utf8(where: str, row: bytes) -> Problem:
    try:
        row.decode("utf-8")
    except UnicodeDecodeError as bad:
        return Problem(where, f"invalid UTF-8 at byte {bad.start} of the row", "Convert the file to UTF-8.")
    return Problem(where, "a text in the row is not UTF-8 (half of a surrogate pair)", "Write whole characters.")


def _not_json(where: str, row: bytes, said: str) -> Problem:
    """Say why a row could not be decoded: encoding first, then syntax."""
    try:
        row.decode("utf-8")
    except UnicodeDecodeError:
        return _not_utf8(where, row)
    if b"\0" in row:
        fix = "Write the file again: a crash or a copy of a sparse file leaves such bytes."
        return Problem(where, "not JSON: it holds NUL bytes", fix)
    if row.strip() == b"{":
        return Problem(where, "not a JSON line", "The object spans several lines; write one object a line.")
    if "out of range" in said:
        return Problem(where, "holds a number that is too large", "Write it as a string, or take it out.")
    said = "it ends in the middle" if "truncated" in said else said.removeprefix("JSON is malformed: ")
    return Problem(where, f"not JSON ({said})", OBJECT_A_LINE)


def _no_object(where: str, row: bytes, value: object) -> Problem:
    whole = row.lstrip().startswith(b"[")
    fix = "Write one object a line, not one array for the whole file." if whole else OBJECT_A_LINE
    return Problem(where, f"row is {json_type(value)}, not an object", fix)


def json_type(value: object) -> str:
    """Return what a value is in JSON's words, with its article."""
    kinds = (
        (bool, "a boolean"), (int, "a number"), (float, "a number"), (list | tuple, "a list"), (dict, "an object"),
        (str, "a string"),
    )  # fmt: skip
    name = next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)
    return "null" if value is None else name
