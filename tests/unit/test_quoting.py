"""Names and quoting: hostile text is refused or quoted, never executed."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullft_cluster.errors import UsageError
from fullft_cluster.quoting import check_name, check_text, directive, log_pattern, shquote


@pytest.mark.parametrize("name", ["a", "65b-train", "run_1.2-x", "A" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "x-",
        ".",
        "..",
        "a b",
        "a'b",
        'a"b',
        "$(id)",
        "`id`",
        "a\nb",
        "#SBATCH",
        "a/b",
        "é",
        "A" * 64,
        "a;b",
        "%j",
    ],
)
def test_what_is_no_name_is_refused_with_one_that_is(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_name(name)
    suggestion = str(refused.value).rsplit("Write for example ", 1)[1].strip("'.").rstrip("'")
    assert check_name(suggestion) == suggestion


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x00b", "a\x1b[0m", "a\u2028b", "a\x85b"])
def test_control_characters_are_refused(text: str) -> None:
    for quote in (check_text,):
        with pytest.raises(UsageError):
            quote(text, "x")
    with pytest.raises(UsageError):
        shquote(text)
    with pytest.raises(UsageError):
        directive(text)


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=80)


@given(printable)
def test_a_shell_reads_back_what_was_quoted(text: str) -> None:
    assert shlex.split(shquote(text)) == [text]


@settings(max_examples=40, deadline=None)
@given(printable)
def test_bash_reads_back_what_was_quoted(text: str) -> None:
    out = subprocess.run(["bash", "-c", f"printf %s {shquote(text)}"], capture_output=True, check=True).stdout
    assert out.decode() == text


@given(printable)
def test_a_directive_is_one_word_to_a_splitter_of_double_quotes(text: str) -> None:
    assert shlex.split(directive(text)) == [text]


def test_percent_signs_of_a_log_path_stay() -> None:
    assert log_pattern("/a/100%/x") == "/a/100%%/x"
