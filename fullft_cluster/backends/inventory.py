"""An inventory from where the user says: a scheduler that is asked now, or a file."""

from __future__ import annotations

import stat
from pathlib import Path

from fullft_cluster.errors import Problem, UsageError, did_you_mean
from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.reading import from_file

SOURCES = ("slurm", "kubernetes")
MAX_BYTES = 1 << 29
"""Of a file. The JSON of ten thousand Kubernetes nodes with all that is in them is a third of that."""


def read_inventory(ref: str) -> Inventory:
    """Return the inventory that ``ref`` names: ``slurm``, ``kubernetes``, ``kubernetes:CONTEXT``, or a file's path.

    Raises SchedulerError when the scheduler is out of reach or refuses, and UsageError for a file that is no inventory.
    """
    source, _, context = ref.partition(":")
    if ref == "slurm":
        from fullft_cluster.backends.slurm_inventory import read_slurm

        return read_slurm()
    if source == "kubernetes" and (context or ref == source):
        from fullft_cluster.backends.kubernetes_inventory import read_kubernetes

        return read_kubernetes(context or None)
    return from_file(_read(ref), ref)


def _read(ref: str) -> bytes:
    fix = f"Write slurm, kubernetes, kubernetes:CONTEXT, or the path of a file. {did_you_mean(ref, SOURCES)}"
    try:
        path = Path(ref).expanduser()
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(Problem("inventory", f"{ref!r} is not a file", fix))
        if found.st_size > MAX_BYTES:
            raise UsageError(Problem("inventory", f"{ref!r} is larger than {MAX_BYTES >> 20} MiB", fix))
        return path.read_bytes()
    except OSError as error:
        raise UsageError(Problem("inventory", f"{ref!r} cannot be read: {error.strerror}", fix)) from None
    except (RuntimeError, ValueError) as error:  # ~user that does not exist, a NUL byte
        raise UsageError(Problem("inventory", f"{ref!r} is not a path: {error}", fix)) from None
