"""Node names as SLURM abbreviates them: ``gpu[001-004,007]``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


MOST_PARTS = 20
"""Names that follow no pattern, as those of rented nodes, are not listed to the last."""


def compress(names: Iterable[str]) -> str:
    """Return the names, sorted, with runs of numbers of equal width abbreviated; the last number of a name counts.

    A list of more than `MOST_PARTS` is cut off, and ends in ``...``.
    """
    groups: defaultdict[tuple[str, int, str], set[int]] = defaultdict(set)
    plain: set[str] = set()
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found:
            prefix, digits, suffix = found.groups()
            groups[prefix, len(digits), suffix].add(int(digits))
        else:
            plain.add(name)
    parts = sorted(plain)
    for (prefix, width, suffix), numbers in sorted(groups.items()):
        runs = [_run(first, last, width) for first, last in _runs(sorted(numbers))]
        single = len(numbers) == 1
        parts.append(f"{prefix}{runs[0]}{suffix}" if single else f"{prefix}[{','.join(runs)}]{suffix}")
    return ",".join(parts if len(parts) <= MOST_PARTS else [*parts[:MOST_PARTS], "..."])


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _run(first: int, last: int, width: int) -> str:
    text = f"{first:0{width}d}"
    return text if first == last else f"{text}-{last:0{width}d}"
