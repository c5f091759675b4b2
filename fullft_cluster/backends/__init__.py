"""Where a job is submitted: the only code that touches the world with it, handed the bytes that `--dry-run` printed."""

from __future__ import annotations

from typing import Any, Protocol

from fullft_cluster.config import Config
from fullft_cluster.errors import UsageError
from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import RunDir
from fullft_cluster.slurm_cli import JobState
from fullft_cluster.status import Status


class Submission(Frozen, frozen=True):
    """What a submit gave back."""

    name: str
    run_dir: str
    backend: str
    job_id: str | None
    prepare_job_id: str | None


class Backend(Protocol):
    """Submits a run directory and looks after it from outside."""

    def check(self) -> None:
        """Raise SchedulerError when this backend cannot be reached from here."""

    def submit(self, run: RunDir, config: Config, script: str, python: str) -> Submission:
        """Prepare the data and start the script; on any error leave nothing behind but the run directory."""

    def status(self, run: RunDir) -> Status:
        """Return what the run is doing."""

    def cancel(self, run: RunDir, *, now: bool) -> str:
        """End the run, after a checkpoint unless `now`; return a sentence on what was done."""

    def resume(self, run: RunDir, script: str) -> Submission:
        """Start a run that has ended again, from its newest checkpoint."""


def backend_of(name: str) -> Backend:
    """Return the backend of that name; Kubernetes has its own, that needs no run directory (backends.kubernetes)."""
    if name == "local":
        from fullft_cluster.backends.local import LocalBackend

        return LocalBackend()
    if name == "slurm":
        from fullft_cluster.backends.slurm import SlurmBackend

        return SlurmBackend()
    raise UsageError(f"unknown backend {name!r}: local or slurm")


def live_states(runs: list[dict[str, Any]]) -> dict[str, JobState]:
    """Return the scheduler's states of the jobs of several run.json, asked for in one call."""
    from fullft_cluster.slurm_cli import job_states

    ids = [str(run[key]) for run in runs for key in ("job_id", "prepare_job_id") if run.get(key)]
    return job_states(ids)
