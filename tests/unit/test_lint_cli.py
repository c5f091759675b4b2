"""`fullft-cluster lint` as a user meets it: exit codes, streams, JSON. In this process, through click."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lint_cases import SCRIPT
from lint_cases_kubernetes import JOB

from fullft_cluster.cli.main import COMMANDS, cli
from fullft_cluster.errors import UsageError

BAD = SCRIPT.replace("set -o pipefail", "export MASTER_PORT=29500")
LINE = BAD.split("\n").index("export MASTER_PORT=29500") + 1


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["lint", *arguments], input=stdin, standalone_mode=True)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.sbatch").write_text(SCRIPT)
    (tmp_path / "bad.sbatch").write_text(BAD)
    (tmp_path / "job.yaml").write_text(JOB + "---\n" + JOB.replace("600", "10"))
    (tmp_path / "notes.txt").write_text("words\n")
    return tmp_path


@pytest.mark.usefixtures("files")
def test_clean_files_exit_0_in_silence() -> None:
    result = run("good.sbatch")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "0 findings in 1 file\n"


@pytest.mark.usefixtures("files")
def test_a_finding_has_file_line_rule_reason_fix_and_link_and_exits_1() -> None:
    result = run("good.sbatch", "bad.sbatch")
    assert result.exit_code == 1
    first, reason, fix, link = result.stdout.splitlines()
    assert first == f"bad.sbatch:{LINE}: sbatch-fixed-port: MASTER_PORT is a fixed number"
    assert reason.startswith("    Two jobs") and fix.startswith("    Fix: Derive") and link.startswith("    https://")


def test_every_document_of_a_file_is_judged(files: Path) -> None:
    result = run("job.yaml")
    second = (files / "job.yaml").read_text().split("\n").index("      terminationGracePeriodSeconds: 10") + 1
    assert result.stdout.startswith(f"job.yaml:{second}: k8s-grace-period: ")


@pytest.mark.usefixtures("files")
def test_files_that_cannot_be_judged_are_all_named_and_the_others_judged() -> None:
    result = run("notes.txt", "missing", "bad.sbatch", ".")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[:3] == [
        "error: notes.txt: is neither an sbatch script nor a Kubernetes manifest. "
        "A script has #SBATCH lines, a manifest apiVersion and kind.",
        "error: missing: cannot be read: No such file or directory. Check the name.",
        "error: .: is a directory. Name the files in it.",
    ]
    assert "sbatch-fixed-port" in result.stdout


@pytest.mark.usefixtures("files")
def test_json_has_findings_and_problems() -> None:
    result = run("--json", "bad.sbatch", "notes.txt")
    answer = json.loads(result.stdout)
    assert result.exit_code == 2
    assert answer["files"] == 2
    assert [set(finding) for finding in answer["findings"]] == [
        {"file", "line", "rule", "what", "reason", "fix", "link"}
    ]
    assert answer["findings"][0]["line"] == LINE
    assert answer["problems"][0]["where"] == "notes.txt"
    assert json.loads(run("--json", "good.sbatch").stdout) == {"files": 1, "findings": [], "problems": []}


@pytest.mark.usefixtures("files")
def test_rules_are_selected_and_ignored() -> None:
    assert run("--ignore", "sbatch-fixed-port", "bad.sbatch").exit_code == 0
    assert run("--select", "sbatch-no-*", "bad.sbatch").exit_code == 0
    assert run("--select", "sbatch-fixed-port", "bad.sbatch").exit_code == 1
    with pytest.raises(UsageError, match="no rule has this name"):
        CliRunner().invoke(cli, ["lint", "--select", "nope", "bad.sbatch"], catch_exceptions=False)


def test_stdin_is_read_by_a_dash() -> None:
    assert run("-", stdin=SCRIPT).exit_code == 0
    result = run("-", stdin=BAD)
    assert result.exit_code == 1 and result.stdout.startswith(f"<stdin>:{LINE}: ")
    assert run("-", stdin=b"\0\1\2").exit_code == 2


def test_rules_are_listed_with_their_sources() -> None:
    result = run("--rules")
    assert result.exit_code == 0 and "sbatch-fixed-port\n    Two jobs" in result.stdout
    rules = json.loads(run("--rules", "--json").stdout)["rules"]
    assert all(set(rule) == {"rule", "reason", "fix", "link"} for rule in rules)
    assert {rule["rule"].split("-")[0] for rule in rules} == {"sbatch", "k8s"}


def test_the_command_is_imported_when_it_is_called() -> None:
    assert COMMANDS["lint"] == ("lint", "lint")
    with pytest.raises(UsageError, match="no file is given"):
        CliRunner().invoke(cli, ["lint"], catch_exceptions=False)
