"""rows: every bad row is named by file and line, and good ones are read in order."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.errors import UsageError
from fullft_cluster.rows import MAX_PROBLEMS, read_texts, row_text, scan_rows


def write(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def errors(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        scan_rows(path)
    return [str(problem) for problem in caught.value.problems]


def test_reads_every_format_in_order_and_passes_over_blank_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        b"\xef\xbb\xbf" + b'{"text": "one"}',
        "",
        '{"prompt": "two ", "completion": "three", "id": 7}',
        "   ",
        '{"question": "four?", "answer": "five"}\r',
    )
    assert list(read_texts(path)) == ["one", "two three", "Question: four?\nAnswer: five"]
    assert scan_rows(path).rows == 3
    assert scan_rows(path).exact


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"texts": "x"}', 'row has no text. Write {"text": "..."}'),
        ('{"text": null}', "text is null"),
        ('{"text": "  "}', "text is empty"),
        ('{"text": 5}', "text is a number, not a string"),
        ('{"text": ["a"]}', "text is a list, not a string"),
        ('{"prompt": "a"}', "row has no completion"),
        ('{"question": "a", "answer": ""}', "answer is empty"),
        ("[1, 2]", "row is a list, not an object. Write one object a line"),
        ('"text"', "row is str"),
        ("{'text': 'x'}", "not JSON"),
        ('{"text": "x"', "not JSON"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 10"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = write(tmp_path, '{"text": "good"}', line, '{"text": "good"}')
    (error,) = errors(path)
    assert error.startswith(f"{path}:2: ")
    assert says in error


def test_all_problems_at_once_up_to_the_cap(tmp_path: Path) -> None:
    assert len(errors(write(tmp_path, *['{"a": 1}', '{"text": "x"}'] * 3))) == 3
    many = errors(write(tmp_path, *['{"a": 1}'] * 500))
    assert len(many) == MAX_PROBLEMS + 1
    assert "gave up" in many[-1]


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    assert "no such file" in errors(tmp_path / "absent.jsonl")[0]
    assert "not a directory" in errors(tmp_path)[0]
    assert "has no rows" in errors(write(tmp_path, ""))[0]
    assert "has no rows" in errors(write(tmp_path, "", "  ", ""))[0]
    path = tmp_path / "train.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "x"}'))
    assert "gzip" in errors(path)[0]


def test_a_file_above_the_limit_is_counted_exactly_and_its_head_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, *['{"text": "x"}'] * 100, "", '{"text": "y"}')
    scan = scan_rows(path, max_bytes=10)
    assert (scan.rows, scan.exact) == (101, False)
    with pytest.raises(UsageError, match=r"train\.jsonl:1: row has no text"):
        scan_rows(write(tmp_path, '{"a": 1}', '{"text": "x"}'), max_bytes=10)


@given(st.text(), st.text())
def test_row_text_agrees_with_the_file_reader(tmp_path_factory: pytest.TempPathFactory, a: str, b: str) -> None:
    for row in ({"text": a}, {"prompt": a, "completion": b}, {"question": a, "answer": b}, {"x": a}):
        path = tmp_path_factory.mktemp("rows") / "train.jsonl"
        path.write_text(json.dumps(row))
        text = row_text(row)
        if text is None:
            assert errors(path)
        else:
            assert list(read_texts(path)) == [text]
