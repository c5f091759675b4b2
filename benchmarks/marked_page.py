"""A page of which scripts write parts: what lies between two marks is a script's, the rest is written by hand."""

from __future__ import annotations

from collections.abc import Sequence

NEW_PAGE = "# Benchmarks\n"


def marks(name: str, module: str) -> tuple[str, str]:
    """Return the lines that a part begins and ends with."""
    return f"<!-- {name}: written by `python -m {module}` -->", f"<!-- end of {name} -->"


def with_part(text: str, name: str, module: str, lines: Sequence[str]) -> str:
    """Return the page with this part in it; at its end where it has not been there."""
    first, last = marks(name, module)
    part = "\n".join([first, "", *lines, "", last])
    if first not in text:
        return f"{text.rstrip()}\n\n{part}\n".lstrip()
    before, rest = text.split(first, 1)
    if last not in rest:
        raise ValueError(f"the mark {last!r} is missing")
    return before + part + rest.split(last, 1)[1]
