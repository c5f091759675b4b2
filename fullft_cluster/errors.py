"""What a user sees when something is wrong, and the exit code that goes with it.

Policy: every error says *where*, *what* and *what to write instead*. Validation collects every problem before it
raises. None of these is shown as a traceback unless ``--debug`` is given. Exit codes: 1 the run or job failed,
2 usage or config, 3 does not fit the hardware, 4 the scheduler is out of reach or refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: printed as ``where: what. fix``."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what.rstrip('.')}." if self.where else f"{self.what.rstrip('.')}."
        return f"{text} {self.fix}".rstrip()


class FullftError(Exception):
    """The base of every error that is meant for the user's eyes."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem] | str) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunFailedError(FullftError):
    """The run or job failed."""

    exit_code = 1


class UsageError(FullftError):
    """A flag, a config or an input file is wrong."""

    exit_code = 2


class DoesNotFitError(FullftError):
    """No plan fits the hardware; says what is short by how much, and the nearest plan that fits."""

    exit_code = 3


class SchedulerError(FullftError):
    """The scheduler or API server is out of reach, or refused (in its own words)."""

    exit_code = 4


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?``, or the list of choices when nothing is near."""
    known = sorted(choices)
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
