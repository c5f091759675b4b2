"""The linter on input that nobody should give it: exit 2 or findings, never a traceback, never minutes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lint_cases import FAKE, SCRIPT
from lint_cases_kubernetes import JOB, PYTORCH, RUNTIME

from fullft_cluster.errors import UsageError
from fullft_cluster.lint import Finding, chosen, lint
from fullft_cluster.lint.shell import read_commands

ALL = chosen((), ())


def judged(data: bytes | str) -> list[Finding] | str:
    """Findings, or the words of the refusal."""
    try:
        return lint(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, "file", ALL)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither an sbatch script nor"),
        (b"\x7fELF\0\0\0", "is not text"),
        (b"#!/bin/bash\n#SBATCH -N1\n\xff\xfe\n", "not text in UTF-8"),
        (b"#SBATCH -N1\n" * 400_000, "larger than 4 MiB"),
        (b"#!/bin/bash\necho hi\n", "is a script without a line of #SBATCH"),
        (b"just words\n", "neither an sbatch script nor"),
        (b"a: 1\nb: 2\n", "neither an sbatch script nor"),
        (b"apiVersion: v1\nkind: Pod\nspec:\n\tcontainers: []\n", "file:4: a tab stands where"),
        (b"apiVersion: v1\nkind: Pod\nname: {{ .Values.name }}\n  {{- end }}\n", "is a template, not YAML"),
        (b"apiVersion: v1\nkind: 'Pod\n", "is not YAML"),
        (b"apiVersion: v1\nkind: Pod\nspec: *none\n", "is not YAML"),
        (b"apiVersion: v1\nkind: Pod\nspec: " + b"[" * 200 + b"]" * 200, "nested too deeply"),
        (b"apiVersion: v1\nkind: Pod\nspec: " + b"[" * 100_000, "nested too deeply"),
        (b"a: &a 1\nb: [" + b"*a," * 200 + b"]", "more than 100 aliases"),
        (b"- " * 100_000, "nested too deeply"),
        (b"apiVersion: v1\nkind: Pod\nspec:\n" + b"- a\n" * 250_000, "more than 200,000 values"),
    ],
)
def test_what_cannot_be_judged_says_why(data: bytes, words: str) -> None:
    answer = judged(data)
    assert isinstance(answer, str) and words in answer


def test_windows_files_are_judged() -> None:
    assert isinstance(judged(JOB.replace("\n", "\r\n")), list)
    assert judged("\ufeff" + JOB) == []
    answer = judged(SCRIPT.replace("\n", "\r\n"))
    assert {finding.rule for finding in answer if isinstance(finding, Finding)} == {"sbatch-dos-lines"}


def test_anchors_aliases_and_merge_keys_are_followed() -> None:
    text = JOB.replace("        env:\n        - {name: NCCL_DEBUG, value: WARN}\n", "        env:\n        - *token\n")
    text = f"x: &base {{name: HF_TOKEN}}\ny: &token {{<<: *base, value: {FAKE}}}\n{text}"
    assert [(finding.rule, finding.line) for finding in judged(text)] == [("k8s-secret-value", 2)]
    loops = "apiVersion: v1\nkind: Pod\nspec: &a\n  <<: *a\n  containers: &c\n  - *a\n  - *c\n"
    assert judged(loops) == []


def test_aliases_of_aliases_stay_short() -> None:
    levels = "\n".join(f"l{n}: &l{n} {{<<: [*l{n - 1}, *l{n - 1}], k{n}: 1}}" for n in range(1, 40))
    assert judged(f"apiVersion: v1\nkind: Pod\nl0: &l0 {{a: 1}}\n{levels}\nspec: *l39\n") == []


@pytest.mark.parametrize(
    "text",
    [
        'echo "never closed\n' * 3000,
        "echo $(" * 50_000,
        "cat <<EOF\n" * 20_000,
        "`" * 50_001,
        "\\\n" * 100_000,
        "((((" * 50_000,
        "a=" * 100_000,
        "x" * 2_000_000,
        "srun --export= --export\n" * 20_000,
        "trap\ntrap x\ntrap -- '' \ntrap '' 10\n" * 5000,
        f"export A_TOKEN={'b' * 300_000}\n",
    ],
    ids=range(11),
)
def test_a_hostile_body_ends(text: str) -> None:
    assert isinstance(judged(f"#!/bin/bash\n#SBATCH -N2 -n 4 --gpus-per-node=2\n{text}"), list)


def test_hostile_options_end() -> None:
    many = "#!/bin/bash\n" + "#SBATCH --time=1 -N 2\n" * 100_000
    wide = "#!/bin/bash\n#SBATCH " + "-N 2 " * 500_000
    quoted = "#!/bin/bash\n#SBATCH --comment='" + "a" * 2_000_000
    for text in (many, wide, quoted):
        assert isinstance(judged(text), list)


def test_findings_hold_no_control_characters() -> None:
    text = JOB.replace("name: pytorch", 'name: "\\e[31mred\\a"').replace("mountPath: /dev/shm", "mountPath: /x")
    answer = judged(text)
    assert isinstance(answer, list) and answer
    assert all(finding.what.isprintable() for finding in answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b; c & d && e || f | g", [("a", ";"), ("c", "&"), ("d", "&&"), ("e", "||"), ("f", "|"), ("g", "")]),
        ("a 2>&1 &\nb &> log", [("a", "&"), ("b", "")]),
        ("a \\\n  b 'c\nd' # x\ne", [("a", "\n"), ("e", "")]),
        ("cat <<'E'\nsrun x\nE\nb", [("cat", "\n"), ("b", "")]),
        ("cat <<-E <<F\nx\n\tE\ny\nF\nb", [("cat", "\n"), ("b", "")]),
        ('x="$(f "a;b" $(g))" y z', [("y", "")]),
        ("if ! srun a; then exec b; fi", [("srun", ";"), ("b", ")")]),
        ("f() { g; }\nfunction h { i; }", [("g", ")"), ("i", ")")]),
        ("(cd x; srun y) &", [("cd", ";"), ("srun", "&")]),
        ("{ a; b; } | c\nfor i in 1; do d & done", [("a", ";"), ("b", "|"), ("c", "\n"), ("for", ";"), ("d", "&")]),
        ("x=(srun\n  python) y", [("y", "")]),
        ("while read x; do a; done < f", [("read", ";"), ("a", ")")]),
        ("a <<< 'x y' b#c", [("a", "")]),
    ],
)
def test_the_shell_reader_finds_commands(text: str, expected: list[tuple[str, str]]) -> None:
    found = [(command.name, command.after) for command in read_commands(text)]
    assert found == expected


def test_lines_are_counted_through_quotes_and_here_documents() -> None:
    text = "a 'x\ny' \\\n b\ncat <<E\n1\n2\nE\nlast\n"
    assert [(command.name, command.line) for command in read_commands(text)] == [("a", 1), ("cat", 4), ("last", 8)]
    assert read_commands("\nX='1\n2' Y=3\n")[0].assignments == [("X", "'1\n2'", 2), ("Y", "3", 3)]


_QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_PIECES = [*"ab -=$(){}'\"`\\\n\t;&|<>#!%@:,0189\r\ufeff\x1b", "srun ", "trap ", "EOF", "<<", "$("]
_SHELL = st.lists(st.sampled_from(_PIECES), max_size=60).map("".join)


@given(st.binary(max_size=400))
@_QUIET
def test_any_bytes(data: bytes) -> None:
    judged(data)
    judged(b"#!/bin/bash\n#SBATCH -N1\n" + data)


@given(_SHELL, _SHELL)
@_QUIET
def test_any_script(options: str, body: str) -> None:
    assert isinstance(judged(f"#!/bin/bash\n#SBATCH --gpus=2\n#SBATCH {options}\n{body}"), list)
    assert all(command.words for command in read_commands(body))


@given(
    st.sampled_from([JOB, PYTORCH, RUNTIME]),
    st.integers(0, 60),
    st.text(alphabet="ab:-{}[]&*!|>'\"#%@, \n0<?", max_size=12),
)
@_QUIET
def test_any_line_of_a_manifest(text: str, number: int, junk: str) -> None:
    lines = text.split("\n")
    lines[min(number, len(lines) - 1)] = junk
    judged("\n".join(lines))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@_QUIET
def test_any_type_in_any_place_of_a_manifest(data: st.DataObject) -> None:
    import yaml

    documents = list(yaml.safe_load_all(data.draw(st.sampled_from([JOB, PYTORCH, RUNTIME]))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(documents))
        while isinstance(place, dict | list) and place:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if data.draw(st.booleans()) or not isinstance(place[key], dict | list):
                place[key] = data.draw(_VALUES)
                break
            place = place[key]
    judged(yaml.safe_dump_all(documents, allow_unicode=True))
