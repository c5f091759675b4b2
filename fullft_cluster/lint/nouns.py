"""What the linter is made of: a rule, what its check yields, and the finding that a user reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

_Document = TypeVar("_Document")

MAX_WORD = 80
"""Characters of a name from the file that a finding quotes at most."""


def quoted(text: str) -> str:
    """Return a name out of a file as something that a terminal can show: no control characters, not too long."""
    short = text if len(text) <= MAX_WORD else f"{text[:MAX_WORD]}..."
    return "".join(char if char.isprintable() else "?" for char in short)


@dataclass(frozen=True)
class Hit:
    """One place where a rule's trap is: the line (from 1) and what stands there."""

    line: int
    what: str


@dataclass(frozen=True)
class Rule(Generic[_Document]):
    """A trap: why it is one, what to write instead, and where that is documented or was met."""

    name: str
    reason: str
    fix: str
    link: str
    check: Callable[[_Document], Iterator[Hit]]


@dataclass(frozen=True, order=True)
class Finding:
    """A trap that was found. The values of secrets are never in it."""

    file: str
    line: int
    rule: str
    what: str
    reason: str
    fix: str
    link: str

    def as_dict(self) -> dict[str, str | int]:
        """Return the finding as JSON takes it."""
        return asdict(self)
