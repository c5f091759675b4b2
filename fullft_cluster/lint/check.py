"""From a file's bytes to findings: what it is, every rule over it, and what the file itself says to ignore."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.lint.manifest import Tree, read_documents
from fullft_cluster.lint.nouns import Finding, Rule
from fullft_cluster.lint.rules import KUBERNETES, SBATCH, every_rule
from fullft_cluster.lint.sbatch import MAGIC, read_sbatch
from fullft_cluster.lint.workload import Workload

MAX_BYTES = 4 << 20
"""SLURM refuses longer scripts (max_script_size, https://slurm.schedmd.com/slurm.conf.html); no manifest is so long."""

_IGNORE = re.compile(r"#\s*lint:\s*ignore[= ]+([a-z0-9*-]+(?:\s*,\s*[a-z0-9*-]+)*)")
_Document = TypeVar("_Document")


def lint(data: bytes, path: str, names: Collection[str]) -> list[Finding]:
    """Return what the named rules find in a file, by line. Raises UsageError for what is no script and no manifest."""
    text = _decoded(data, path)
    if re.search(rf"^[ \t]*{MAGIC}\b", text, re.MULTILINE):
        rules: tuple[Rule[Any], ...] = SBATCH
        documents: list[Any] = [read_sbatch(text, path)]
    else:
        rules, documents = KUBERNETES, list(_workloads(text, path))
    lines = text.split("\n")
    found = {
        Finding(path, hit.line, rule.name, hit.what, rule.reason, rule.fix, rule.link)
        for document in documents
        for rule in rules
        if rule.name in names
        for hit in rule.check(document)
        if rule.name not in _ignored(lines, hit.line)
    }
    return sorted(found)


def _decoded(data: bytes, path: str) -> str:
    if len(data) > MAX_BYTES:
        raise UsageError(Problem(path, "is larger than 4 MiB", "Give a batch script or a manifest, not data."))
    if b"\0" in data[:4096]:
        raise UsageError(Problem(path, "is not text", "Give a batch script or a manifest."))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(Problem(path, "is not text in UTF-8", "Give a batch script or a manifest.")) from None


def _workloads(text: str, path: str) -> Iterator[Workload]:
    """Yield the objects of a manifest. Raises UsageError for text that has none."""
    if text.startswith("#!"):
        fix = "An sbatch script says what it wants in #SBATCH lines."
        raise UsageError(Problem(path, f"is a script without a line of {MAGIC}", fix))
    trees = [tree for tree in read_documents(text.removeprefix("\ufeff"), path) if _is_object(tree)]
    if not trees:
        fix = "A script has #SBATCH lines, a manifest apiVersion and kind."
        raise UsageError(Problem(path, "is neither an sbatch script nor a Kubernetes manifest", fix))
    for tree in trees:
        yield Workload(tree, path, tuple(trees))


def _is_object(tree: Tree) -> bool:
    return bool(tree.value("apiVersion") and tree.value("kind"))


def _ignored(lines: list[str], line: int) -> set[str]:
    """Return the rules that ``# lint: ignore RULE`` ignores: at the end of the line, or in comments right above it."""
    wanted = [lines[line - 1]] if 0 < line <= len(lines) else []
    above = line - 2
    while 0 <= above < len(lines) and lines[above].lstrip().startswith("#") and line - above < 12:
        wanted.append(lines[above])
        above -= 1
    patterns = [name.strip() for text in wanted for match in _IGNORE.findall(text) for name in match.split(",")]
    if not patterns:
        return set()
    return {rule.name for rule in every_rule() if any(fnmatchcase(rule.name, pattern) for pattern in patterns)}
