"""Which checkpoint of a run is meant by a name or a path, and what is wrong with it if it cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

from fullft_cluster.checkpoints import Checkpoint, inspect, list_checkpoints, verify_files
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.rundir import RunDir

_STEP = re.compile(r"(?:step-)?(\d+)")


def choose_checkpoint(run: RunDir, wanted: str | None, *, verify: bool) -> Checkpoint:
    """Return the checkpoint ``step-N`` of a run, one in a directory elsewhere, or the newest that is complete.

    With `verify` every file is read and its digest compared. Raises UsageError for one that is not there or not good,
    with the good ones that are: an older one is never taken for it without a word.
    """
    there = list_checkpoints(run.checkpoints)
    good = [found for found in there if found.good]
    if wanted is None:
        if not good:
            raise UsageError(_nothing_good(run, there))
        chosen = good[-1]
    else:
        chosen = _named(run, wanted, good)
    reason = chosen.reason or (verified(chosen) if verify else "")
    if reason:
        raise UsageError(Problem(str(chosen.path), f"is damaged: {reason}", _instead(good, chosen)))
    return chosen


def verified(checkpoint: Checkpoint) -> str:
    """Return what is wrong with a complete checkpoint by the digests of its files, or nothing."""
    wrong = verify_files(checkpoint.path, checkpoint.manifest().files)
    more = f"; and {len(wrong) - 3} more files" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _nothing_good(run: RunDir, there: list[Checkpoint]) -> Problem:
    if not there:
        fix = "Wait for the first one, or ask for it: touch RUN/control/checkpoint."
        return Problem(run.name, "has committed no checkpoint yet", fix)
    bad = "; ".join(f"{found.path.name}: {found.reason}" for found in there[-3:])
    return Problem(run.name, f"has no good checkpoint ({bad})")


def _named(run: RunDir, wanted: str, good: list[Checkpoint]) -> Checkpoint:
    step = _STEP.fullmatch(wanted)
    path = run.checkpoints / f"step-{int(step[1])}" if step else Path(wanted)
    if not step and not path.exists() and "/" not in wanted:
        path = run.checkpoints / wanted  # step-N.bad-K, as `checkpoints` lists it
    if not path.is_dir():
        raise UsageError(Problem(wanted, f"no such checkpoint of {run.name}", _instead(good)))
    if not re.fullmatch(r"step-\d+", path.name):
        for found in list_checkpoints(path.parent):
            if found.path == path:
                return found  # one that was set aside, with its reason
        fix = f"A checkpoint is a directory step-N with its MANIFEST.json. {_instead(good)}".strip()
        raise UsageError(Problem(str(path), "is no checkpoint", fix))
    return inspect(path.absolute())


def _instead(good: list[Checkpoint], other_than: Checkpoint | None = None) -> str:
    names = [found.path.name for found in good if other_than is None or found.path != other_than.path]
    return f"Good ones: {', '.join(names)}." if names else "There is no good one."
