"""The tables of rules, and the choice among them by ``--select`` and ``--ignore``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.lint import kubernetes_jobs, kubernetes_pods, sbatch_body, sbatch_options
from fullft_cluster.lint.nouns import Rule
from fullft_cluster.lint.sbatch import SbatchScript
from fullft_cluster.lint.workload import Workload

SBATCH: tuple[Rule[SbatchScript], ...] = (*sbatch_options.RULES, *sbatch_body.RULES)
KUBERNETES: tuple[Rule[Workload], ...] = (*kubernetes_jobs.RULES, *kubernetes_pods.RULES)


def every_rule() -> Iterator[Rule[Any]]:
    """Yield all rules, in the order of their table."""
    yield from SBATCH
    yield from KUBERNETES


def chosen(select: Collection[str], ignore: Collection[str]) -> frozenset[str]:
    """Return the names of the rules to apply. Patterns (``k8s-*``) are allowed; raises UsageError for unknown names."""
    names = [rule.name for rule in every_rule()]
    problems = [
        Problem(f"--{option} {pattern}", "no rule has this name", did_you_mean(pattern, names))
        for option, patterns in (("select", select), ("ignore", ignore))
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if problems:
        raise UsageError(problems)
    return frozenset(
        name
        for name in names
        if (not select or any(fnmatchcase(name, pattern) for pattern in select))
        and not any(fnmatchcase(name, pattern) for pattern in ignore)
    )
