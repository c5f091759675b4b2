"""Every rule of the linter: found in the right line where its trap is, silent where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lint_cases import FAKE, SBATCH, SCRIPT
from lint_cases_kubernetes import CLEAN, KUBERNETES

from fullft_cluster.errors import UsageError
from fullft_cluster.lint import Finding, chosen, lint
from fullft_cluster.lint.report import rules_markdown
from fullft_cluster.lint.rules import every_rule

ROOT = Path(__file__).parents[2]
ALL = chosen((), ())
CASES = [*SBATCH, *KUBERNETES]


def found(text: str, name: str = "file") -> list[Finding]:
    return lint(text.encode(), name, ALL)


def marked(text: str) -> set[int]:
    """Lines with HERE in them; HERE-2 stands for two lines above."""
    lines = text.split("\n")
    marks = [(number, re.search(r"HERE(-[0-9]+)?", line)) for number, line in enumerate(lines, start=1)]
    return {number + int(match.group(1) or 0) for number, match in marks if match}


@pytest.mark.parametrize(("rule", "bad", "good"), CASES, ids=[f"{rule}-{n}" for n, (rule, _, _) in enumerate(CASES)])
def test_a_trap_is_found_in_its_line_and_not_where_there_is_none(rule: str, bad: str, good: str) -> None:
    assert {finding.line for finding in found(bad) if finding.rule == rule} == marked(bad)
    assert [finding for finding in found(good) if finding.rule == rule] == []


@pytest.mark.parametrize("text", [SCRIPT, *CLEAN.values()], ids=["script", *CLEAN])
def test_what_is_right_has_no_finding_at_all(text: str) -> None:
    assert found(text) == []


def test_every_rule_has_a_case_a_reason_a_fix_and_a_source() -> None:
    rules = list(every_rule())
    assert {rule for rule, _, _ in CASES} == {rule.name for rule in rules}
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.link.startswith("https://")
        assert rule.reason.endswith(".") and rule.fix.endswith((".", "...")), rule.name


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "golden").glob("*.sbatch")), ids=lambda path: path.name)
def test_our_own_scripts_are_clean(path: Path) -> None:
    assert found(path.read_text(), path.name) == []


def test_the_documentation_holds_the_table_of_rules() -> None:
    assert rules_markdown() in (ROOT / "docs" / "lint.md").read_text(), (
        "run: fullft-cluster lint --rules, see docs/lint.md"
    )


def test_a_secret_is_never_repeated() -> None:
    for _, bad, _ in CASES:
        for finding in found(bad):
            assert (
                FAKE not in str(finding) and "0a0a0a0a" not in str(finding) and "0123456789abcdef" not in str(finding)
            )


@pytest.mark.parametrize(
    "comment",
    [
        "# lint: ignore sbatch-fixed-port",
        "# lint: ignore=sbatch-fixed-*",
        "# why\n# lint: ignore a, sbatch-fixed-port\n# x",
    ],
)
def test_a_comment_above_or_behind_ignores_a_rule_there(comment: str) -> None:
    port = "export MASTER_PORT=29500"
    text = SCRIPT.replace("trap 'touch", f"{comment}\n{port}\ntrap 'touch")
    assert found(text) == []
    assert len(found(text + port + "\n")) == 1
    behind = SCRIPT.replace("trap 'touch", f"{port} {comment.splitlines()[0]}\ntrap 'touch")
    assert (found(behind) == []) == comment.startswith("# lint")


def test_rules_are_chosen_by_name_and_pattern() -> None:
    assert chosen(["sbatch-secret"], []) == {"sbatch-secret"}
    assert chosen(["k8s-*"], ["k8s-root"]) == {rule for rule in ALL if rule.startswith("k8s-")} - {"k8s-root"}
    with pytest.raises(UsageError, match="Did you mean 'sbatch-no-time'"):
        chosen(["sbatch-notime"], [])


def test_later_options_win_and_several_stand_on_a_line() -> None:
    text = SCRIPT.replace("#SBATCH --nodes=2", "#SBATCH --nodes=2 --signal=B:USR1@5 -N4")
    assert found(text) == []  # the later --signal counts


def test_heterogeneous_components_are_not_multiplied() -> None:
    text = SCRIPT.replace("-c 96", "--gpus-per-task=4\n#SBATCH hetjob\n#SBATCH --nodes=1")
    assert "sbatch-tasks-gpus" not in {finding.rule for finding in found(text)}


def test_options_may_be_abbreviated() -> None:
    text = SCRIPT.replace("--open-mode=append", "--open=append").replace(
        "--time=24", "--tim=24"
    )  # --time-min has it too
    assert {finding.rule for finding in found(text)} == {"sbatch-no-time"}
    text = SCRIPT.replace("--signal=", "--sig=").replace(
        "#SBATCH --output=%x-%j.out", "#SBATCH --out=%x-%j.out --err=%j.err"
    )
    assert found(text) == []
