"""Findings and rules as text for people, JSON for programs, and Markdown for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fullft_cluster.errors import Problem
from fullft_cluster.lint.nouns import Finding
from fullft_cluster.lint.rules import every_rule


def as_text(findings: Sequence[Finding]) -> str:
    """Return findings one below the other: ``file:line: rule: what``, then the reason, the fix and the link."""
    return "".join(
        f"{found.file}:{found.line}: {found.rule}: {found.what}\n"
        f"    {found.reason}\n    Fix: {found.fix}\n    {found.link}\n"
        for found in findings
    )


def as_json(findings: Sequence[Finding], problems: Sequence[Problem], files: int) -> str:
    """Return findings, and files that could not be judged, as one JSON object."""
    return json.dumps(
        {
            "files": files,
            "findings": [found.as_dict() for found in findings],
            "problems": [vars(problem) for problem in problems],
        },
        indent=2,
        ensure_ascii=False,
    )


def rules_text() -> str:
    """Return every rule with its reason, fix and link."""
    return "".join(f"{rule.name}\n    {rule.reason}\n    Fix: {rule.fix}\n    {rule.link}\n" for rule in every_rule())


def rules_json() -> str:
    """Return every rule as JSON."""
    rules = [{"rule": r.name, "reason": r.reason, "fix": r.fix, "link": r.link} for r in every_rule()]
    return json.dumps({"rules": rules}, indent=2, ensure_ascii=False)


def rules_markdown() -> str:
    """Return the table of docs/lint.md."""
    rows = "".join(
        f"| `{rule.name}` | {_cell(rule.reason)} | {_cell(rule.fix)} | [source]({rule.link}) |\n"
        for rule in every_rule()
    )
    return f"| rule | why it is a trap | what to write | source |\n| --- | --- | --- | --- |\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
