"""``sbatch --constraint`` on a pool's features."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[^\s()\[\]*]+")


def has_features(features: tuple[str, ...], constraint: str | None) -> bool:
    """Return whether nodes with these features meet a constraint of names with ``&`` or ``,`` (and) or ``|`` (or).

    What counts nodes or groups names, ``[rack1*2&rack2]``, is left to SLURM (https://slurm.schedmd.com/sbatch.html,
    --constraint).
    """
    if not constraint or not _PLAIN.fullmatch(constraint):
        return True
    groups = (re.split("[&,]", group) for group in constraint.split("|"))
    return any(all(name in features for name in group) for group in groups)
