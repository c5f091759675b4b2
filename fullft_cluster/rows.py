"""The noun Rows: a .jsonl file of training text, read strictly. No torch, no numpy: a login node checks it too.

A row is one JSON object a line with `text`, or `prompt` + `completion`, or `question` + `answer`; other keys are
ignored. Every error names the file and the line, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen

MAX_PROBLEMS = 20
"""So many are collected before giving up: enough to see the pattern, few enough to read."""

_FORMATS = 'Write {"text": "..."}, {"prompt": "...", "completion": "..."} or {"question": "...", "answer": "..."}.'
_MAGIC = {
    b"\x1f\x8b": ("gzip", "Decompress it: gunzip -c FILE > train.jsonl"),
    b"\x28\xb5\x2f\xfd": ("zstd", "Decompress it: zstd -d FILE -o train.jsonl"),
    b"PK\x03\x04": ("a zip archive", "Unpack it and name the .jsonl file inside"),
    b"PAR1": ("Parquet", "Convert it to JSON lines: one object a line"),
    b"\xff\xfe": ("UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8"),
}


class RowScan(Frozen, frozen=True, kw_only=True):
    """What a scan found."""

    rows: int
    exact: bool
    """Every row was checked; False when the file is larger than was read and only its lines were counted."""
    text_bytes: int
    """UTF-8 bytes of the text of all rows; estimated by the read ones' share of their lines where not all were read."""


class _Row(msgspec.Struct):
    """The known keys of a row, decoded without making Python objects of the others."""

    text: Any = msgspec.UNSET
    prompt: Any = msgspec.UNSET
    completion: Any = msgspec.UNSET
    question: Any = msgspec.UNSET
    answer: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Row)


def row_text(row: dict[str, Any]) -> str | None:
    """Return the text to learn from, or None when the row has none (or only white space, or a wrong type).

    `prompt` and `completion` are joined as they are; a question and its answer become ``Question: ...\\nAnswer: ...``.
    """
    known = {key: value for key, value in row.items() if key in _Row.__struct_fields__}
    text, _ = _text(_Row(**known))
    return text


def _text(row: _Row) -> tuple[str | None, str]:
    """Return (text, "") or (None, what is wrong)."""
    if row.text is not msgspec.UNSET:
        parts, template = {"text": row.text}, "{text}"
    elif row.prompt is not msgspec.UNSET or row.completion is not msgspec.UNSET:
        parts, template = {"prompt": row.prompt, "completion": row.completion}, "{prompt}{completion}"
    elif row.question is not msgspec.UNSET or row.answer is not msgspec.UNSET:
        parts = {"question": row.question, "answer": row.answer}
        template = "Question: {question}\nAnswer: {answer}"
    else:
        return None, "row has no text"
    for key, value in parts.items():
        if value is msgspec.UNSET:
            return None, f"row has no {key}"
        if value is None:
            return None, f"{key} is null"
        if not isinstance(value, str):
            return None, f"{key} is {_json_type(value)}, not a string"
        if not value.strip() and key != "prompt":  # a completion may stand alone
            return None, f"{key} is empty"
    return template.format(**parts), ""


def _json_type(value: object) -> str:
    kinds = ((bool, "a boolean"), (int, "a number"), (float, "a number"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def parse_row(line: bytes, where: str) -> str | Problem:
    """Return the text of one line of a .jsonl file, or the Problem with it."""
    try:
        text, wrong = _text(_decoder.decode(line))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _not_a_row(line, where, error)
    return text if text is not None else Problem(where, wrong, _FORMATS)


def _not_a_row(line: bytes, where: str, error: Exception) -> Problem:
    """Say why a line could not be decoded: encoding first, then syntax, then its type."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        return Problem(where, f"invalid UTF-8 at byte {bad.start} of the line", "Convert the file to UTF-8.")
    if isinstance(error, msgspec.ValidationError):
        kind = _json_type(msgspec.json.decode(line))
        whole = line.lstrip().startswith(b"[")
        fix = "Write one object a line, not one array for the whole file." if whole else _FORMATS
        return Problem(where, f"row is {kind}, not an object", fix)
    if line.strip() in (b"[", b"[{"):
        return Problem(where, "not a JSON line", "The file looks like one JSON array; write one object a line.")
    return Problem(where, f"not JSON ({error})", "Write one JSON object a line.")


def _check_file(path: Path) -> None:
    """Refuse what is no readable text file. Raises UsageError."""
    where = str(path)
    if not path.exists():
        raise UsageError(Problem(where, "no such file", "data.train takes the path of a .jsonl file."))
    if not path.is_file():
        raise UsageError(Problem(where, "is not a file", "data.train takes one .jsonl file, not a directory."))
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UsageError(Problem(where, f"cannot be read ({error.strerror})", "Check its permissions.")) from None
    for magic, (name, fix) in _MAGIC.items():
        if head.startswith(magic):
            raise UsageError(Problem(where, f"is {name}, not JSON lines", fix))


def read_texts(path: Path) -> Iterator[str]:
    """Yield the text of every row, in the file's order; blank lines are passed over.

    Raises UsageError with up to `MAX_PROBLEMS` problems: at once when that many are found, else at the end of the
    file. Whoever consumes the rows must therefore not use them before the iterator has ended.
    """
    _check_file(path)
    problems: list[Problem] = []
    rows = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901 - the byte order mark of Windows editors
            if not line.strip():
                continue
            rows += 1
            parsed = parse_row(line, f"{path}:{number}")
            if isinstance(parsed, str):
                yield parsed
                continue
            problems.append(parsed)
            if len(problems) >= MAX_PROBLEMS:
                problems.append(Problem(str(path), f"gave up after {MAX_PROBLEMS} bad rows"))
                raise UsageError(problems)
    if problems:
        raise UsageError(problems)
    if not rows:
        raise UsageError(Problem(str(path), "has no rows", _FORMATS))


def scan_rows(path: Path, max_bytes: int = 256_000_000) -> RowScan:
    """Count the rows of a file and check them all, or only count them when it is larger than `max_bytes`.

    Above `max_bytes` the first megabyte is still checked (a wrong format shows at once); `prepare` checks the rest.
    Raises UsageError as `read_texts` does.
    """
    _check_file(path)
    size = path.stat().st_size
    if size <= max_bytes:
        rows = text_bytes = 0
        for text in read_texts(path):
            rows += 1
            text_bytes += len(text.encode())
        return RowScan(rows=rows, exact=True, text_bytes=text_bytes)
    with path.open("rb") as file:
        checked = text_bytes = 0
        problems: list[Problem] = []
        rows = 0
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            rows += 1
            if checked < 1_000_000:
                checked += len(line)
                parsed = parse_row(line.removeprefix(b"\xef\xbb\xbf"), f"{path}:{number}")
                problems += [parsed] if isinstance(parsed, Problem) else []
                text_bytes += 0 if isinstance(parsed, Problem) else len(parsed.encode())
    if problems:
        raise UsageError(problems[:MAX_PROBLEMS])
    if not rows:
        raise UsageError(Problem(str(path), "has no rows", _FORMATS))
    return RowScan(rows=rows, exact=False, text_bytes=round(size * text_bytes / checked))
