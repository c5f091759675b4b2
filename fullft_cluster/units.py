"""Units: GiB = 2^30 bytes, GB = 10^9 bytes."""

from __future__ import annotations

import re

GIB = 2**30
GB = 10**9

_SLURM_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?$")


def slurm_time_seconds(text: str) -> int:
    """Return the seconds in a SLURM time (``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``).

    Raises ValueError for anything else. Source: ``man sbatch``, option ``--time``.
    """
    match = _SLURM_TIME.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a SLURM time such as 02:00:00 or 1-12:00:00")
    a, b, c = (int(match[g]) if match[g] else 0 for g in "abc")
    if match["days"]:
        return int(match["days"]) * 86400 + a * 3600 + b * 60 + c
    if match["c"]:
        return a * 3600 + b * 60 + c
    return a * 60 + b


_DURATION = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>d|h|m|min|s)$")
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}


def duration_seconds(text: str) -> float:
    """Return the seconds in ``24h``, ``90m``, ``1.5d``, ``3600s``, or in a SLURM time with a colon or a dash.

    Raises ValueError for anything else; a number alone could be minutes or hours.
    """
    match = _DURATION.match(text.strip().lower())
    if match:
        return float(match["number"]) * _SECONDS[match["unit"]]
    if ":" in text or "-" in text:
        return float(slurm_time_seconds(text.strip()))
    raise ValueError(f"{text!r} is not a duration such as 24h, 90m, 3d or 1-12:00:00")


def in_gib(gib: float, digits: int = 1) -> str:
    """Return a number of GiB as ``3.4 GiB``; what would show as nothing in MiB or KiB."""
    return _scaled(gib, 1024, ("GiB", "MiB", "KiB"), digits)


def in_gb(gb: float, digits: int = 1) -> str:
    """Return a number of GB as ``783.4 GB``; what would show as nothing in MB or kB."""
    return _scaled(gb, 1000, ("GB", "MB", "kB"), digits)


def _scaled(value: float, step: int, names: tuple[str, ...], digits: int) -> str:
    for name in names[:-1]:
        if value == 0 or abs(value) >= 0.1:
            return f"{value:.{digits}f} {name}"
        value *= step
    return f"{value:.{digits}f} {names[-1]}"


def duration(seconds: float) -> str:
    """Return ``1h 02m``, ``3m 04s`` or ``5s`` for a number of seconds."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole}s"
