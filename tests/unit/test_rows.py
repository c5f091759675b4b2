"""rows: every bad row is named by file and line, and good ones are read in order."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.config import DataConfig
from fullft_cluster.errors import UsageError
from fullft_cluster.row_files import MAX_ROW_BYTES, read_json
from fullft_cluster.row_sources import sources_of
from fullft_cluster.rows import MAX_PROBLEMS, check_files, open_files, read_rows
from fullft_cluster.samples import BadRow, Sample


def write(tmp_path: Path, *lines: str | bytes, name: str = "train.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def rows(path: Path | None, *, seed: int = 0, **data: Any) -> list[Sample | BadRow]:
    config = DataConfig(train=str(path) if path else None, **data)
    sources = sources_of(config)
    check_files(sources)
    return list(
        read_rows(sources, config, lambda one: open_files(one, lambda file: read_json(file, one.key)), seed=seed)
    )


def texts(path: Path, **data: Any) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in rows(path, **data) if isinstance(row, Sample)]


def errors(path: Path, **data: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        rows(path, **data)
    return [str(problem) for problem in caught.value.problems]


def test_reads_in_order_and_passes_over_blank_lines(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    path = write(tmp_path, mark + b'{"prompt": "a", "completion": "b"}', "", '{"prompt": "", "completion": "c"}', " \r")
    assert [row.where for row in rows(path) if isinstance(row, Sample)] == [f"{path}:1", f"{path}:3"]
    assert texts(path) == [("a", "b"), ("", "c")]


def test_a_json_array_is_read_with_row_numbers_and_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf \n [", '{"text": "one"},', '{"text": "two"}', "]\n", name="train.jsonl")
    assert [(row.where, row.completion) for row in rows(path) if isinstance(row, Sample)] == [
        (f"{path}: row 1", "one"), (f"{path}: row 2", "two"),
    ]  # fmt: skip
    lines = write(tmp_path, '{"text": "one"}', '{"text": "two"}', name="lines.json")
    assert texts(lines) == [("", "one"), ("", "two")]
    assert "has no rows" in errors(write(tmp_path, "[]", name="empty.json"))[0]
    (bad,) = errors(write(tmp_path, '[{"text": "one"}, {"text": null}, 3]', name="bad.json"))[:1]
    assert bad.startswith(f"{tmp_path}/bad.json: row 2: text is null")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[\n{"text": "a"},\n{"text": }]', "bad.json:3: not JSON (invalid character (byte "),
        ('[\n{"text": "a"},\n', "bad.json:3: not JSON (it ends in the middle of a row)"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "bad.json:2: more follows where the array of rows ends"),
        ("[" * 100_000, "bad.json: is nested too deeply"),
    ],
)
def test_what_is_no_array_to_its_end_is_an_error_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in errors(write(tmp_path, text, name="bad.json"), on_bad_row="skip")[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"texts": "x"}', 'row has no text; its keys are texts. Write {"text": "..."}.'),
        ("{}", "row has no text: it is empty"),
        ('{"text": null}', "text is null"),
        ('{"text": "  "}', "text is empty"),
        ('{"text": 5}', "text is a number, not a string"),
        ('{"text": ["a"]}', "text is a list, not a string"),
        ("[1, 2]", "row is a list, not an object. Write one object a line"),
        ('"text"', "row is a string, not an object"),
        ("null", "row is null, not an object"),
        ("{'text': 'x'}", "not JSON"),
        ('{"text": "x"', "not JSON (it ends in the middle)"),
        ("{", "The object spans several lines"),
        ('{"text": "x", "n": NaN}', "not JSON (invalid character"),
        ('{"text": "x", "n": 1' + "0" * 5000 + "}", "holds a number that is too large"),
        ('{"text": "x", "n": ' + "[" * 50_000, "row is nested too deeply"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 10"),
        ('{"text": "\\ud83d"}', "not JSON"),
        (b"\0\0\0\0", "not JSON: it holds NUL bytes"),
        (b'{"text": "x"}\0', "not JSON: it holds NUL bytes"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = write(tmp_path, '{"text": "good"}', line, '{"text": "also good"}')
    (error,) = errors(path)
    assert error.startswith(f"{path}:2: ")
    assert says in error
    first, bad, last = rows(path, on_bad_row="skip")
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert (first.completion, last.completion) == ("good", "also good")
    assert isinstance(bad, BadRow)
    assert str(bad.problem) == error


def test_a_row_of_ten_megabytes_is_told_without_being_loaded(tmp_path: Path) -> None:
    import tracemalloc

    long = b'{"text": "' + b"a" * (40 << 20) + b'"}'
    path = write(tmp_path, '{"text": "good"}', long, '{"text": "good"}')
    del long
    tracemalloc.start()
    (error,) = errors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.startswith(f"{path}:2: row is 40.0 MiB long, and the limit is 8 MiB. Split it")
    assert peak < 3 * MAX_ROW_BYTES
    fits = write(tmp_path, b'{"text": "' + b"a" * (MAX_ROW_BYTES - 13) + b'"}\n')
    assert len(rows(fits)) == 1
    array = write(tmp_path, b'[{"text": "a"}, {"text": "' + b"a" * MAX_ROW_BYTES + b'"}]', name="array.json")
    assert "array.json: row 2: row is 8.0 MiB long" in errors(array)[0]


def test_all_problems_at_once_up_to_the_cap_over_all_sources(tmp_path: Path) -> None:
    assert len(errors(write(tmp_path, *['{"a": 1}', '{"text": "x"}'] * 3))) == 3
    many = errors(write(tmp_path, *['{"a": 1}'] * 500))
    assert len(many) == MAX_PROBLEMS + 1
    assert "gave up" in many[-1]
    paths = [write(tmp_path, '{"a": 1}', '{"text": "x"}', name=f"{n}.jsonl") for n in range(3)]
    with pytest.raises(UsageError) as caught:
        rows(None, sources=_sources(*paths))
    assert [problem.where for problem in caught.value.problems] == [f"{path}:1" for path in paths]


def _sources(*paths: Path, **more: Any) -> Any:
    from fullft_cluster.config import Source

    return tuple(Source(path=str(path), **more) for path in paths)


def test_no_row_at_all_is_an_error_even_where_bad_ones_are_passed_over(tmp_path: Path) -> None:
    told = errors(write(tmp_path, *['{"a": 1}'] * 50), on_bad_row="skip")
    assert len(told) == MAX_PROBLEMS + 1
    assert "has no row that can be used" in told[-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b'{"text": "x"}', mtime=0), "is gzip, not JSON lines. Decompress it"),
        (b"\x28\xb5\x2f\xfd1234", "is zstd"),
        (b"PK\x03\x04zip", "is a zip archive"),
        (b"\xff\xfe{\0", "is UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is HTML or XML"),
        (b"ARROW1\0\0", "is Arrow"),
        (b"", "has no rows"),
        (b" \n\n \n", "has no rows"),
        (b" " * 200_000, "has no rows"),
    ],
)
def test_files_that_are_no_rows_by_their_content(tmp_path: Path, content: bytes, says: str) -> None:
    (error,) = errors(write(tmp_path, content, name="train.json"))
    assert error.startswith(f"{tmp_path}/train.json: {says}")


def test_files_that_are_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file. data.train takes a file (.jsonl" in errors(tmp_path / "absent.jsonl")[0]
    assert "has no files with rows" in errors(tmp_path)[0]
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is not a file" in errors(tmp_path / "pipe.jsonl")[0]
    assert "cannot be read" in errors(tmp_path / ("n" * 300))[0]
    assert "no such file" in errors(Path("a\0b"))[0]
    with pytest.raises(UsageError) as caught:  # all of them at once
        rows(None, sources=_sources(tmp_path / "a.jsonl", tmp_path / "b.jsonl"))
    assert len(caught.value.problems) == 2


_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner)
    ),
    max_leaves=8,
)
_keys = ["text", "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "question", "x"]
_good = '{"prompt": "p", "completion": "c"}'


@given(row=st.dictionaries(st.sampled_from(_keys), _values))
def test_any_value_under_any_key_is_a_row_or_a_problem(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    path = write(tmp_path_factory.getbasetemp(), json.dumps(row), _good, name="any.jsonl")
    try:
        found = rows(path, on_bad_row="skip")
    except UsageError:  # the first row told the format, and the second is of another: not here
        pytest.fail("a good row was refused")
    assert len(found) == 2


@given(line=st.binary())
def test_any_bytes_are_rows_or_problems(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp(), _good, line, name="bytes.jsonl")
    try:
        found = rows(path, on_bad_row="skip")
    except UsageError:
        pytest.fail("a good row was refused")
    assert len(found) == 1 + sum(bool(part.strip()) for part in line.split(b"\n"))


@given(prompt=st.text(), completion=st.text().filter(lambda text: text.strip()), ascii_=st.booleans())
def test_good_rows_survive_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, completion: str, ascii_: bool
) -> None:
    row = {"prompt": prompt, "completion": completion}
    lines = write(tmp_path_factory.getbasetemp(), json.dumps(row, ensure_ascii=ascii_), name="lines.jsonl")
    array = write(tmp_path_factory.getbasetemp(), json.dumps([row], ensure_ascii=ascii_), name="array.json")
    assert texts(lines) == texts(array) == [(prompt, completion)]
