"""SLURM: a preparation job by submitit without GPUs, and the training job that waits for it."""

from __future__ import annotations

import contextlib
import io
import shutil
import time

from fullft_cluster import slurm_cli
from fullft_cluster.attempt_time import slurm_time
from fullft_cluster.backends import Submission, live_states
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, SchedulerError, UsageError
from fullft_cluster.job import PREPARE_SECONDS
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.status import ENDED, Status, read_status
from fullft_cluster.units import slurm_time_seconds


class SlurmBackend:
    """Submits by sbatch; asks by squeue, sacct and scontrol."""

    def check(self) -> None:
        """Raise SchedulerError without an sbatch on PATH."""
        if shutil.which("sbatch") is None:
            raise SchedulerError(
                Problem(
                    "sbatch",
                    "no `sbatch` on PATH, so SLURM cannot be reached from here",
                    "Run on a login node of the cluster (or `module load slurm`), or use --backend local.",
                )
            )

    def submit(self, run: RunDir, config: Config, script: str, python: str) -> Submission:
        """Queue the preparation, then the training after it; when the second is refused, the first is taken back."""
        queued = [self._prepare(run, config, python)]
        try:
            run.update_run(prepare_job_id=queued[0])
            # Given beside the script, whose bytes are the dry run's. A preparation that fails ends the job, which
            # would else wait for ever (DependencyNeverSatisfied).
            after = (f"--dependency=afterok:{queued[0]}", "--kill-on-invalid-dep=yes")
            queued.append(self._sbatch(run, script, *after))
            run.update_run(job_id=queued[1])
        except BaseException:  # refused, a full disk, Ctrl-C: no job is left without its run
            slurm_cli.try_call(["scancel", *queued])
            raise
        return self._submission(run, queued[1], queued[0])

    def _submission(self, run: RunDir, job_id: str, prepare_id: str | None) -> Submission:
        return Submission(
            name=run.name, run_dir=str(run.path), backend="slurm", job_id=job_id, prepare_job_id=prepare_id
        )

    def _sbatch(self, run: RunDir, script: str, *options: str) -> str:
        out = slurm_cli.call(["sbatch", "--parsable", *options, script], cwd=run.path)
        # Behind whatever a site's wrapper says: "ID", or "ID;CLUSTER" in a federation.
        ids = [line.partition(";")[0] for line in out.split() if line.partition(";")[0].isdigit()]
        if not ids:
            raise SchedulerError(Problem("sbatch", f"printed {out.strip()!r} where a job id was expected"))
        return ids[-1]

    def _prepare(self, run: RunDir, config: Config, python: str) -> str:
        """Submit the preparation by submitit and return its job id."""
        try:
            import submitit
        except ImportError:
            raise UsageError(
                Problem("submitit", "is not installed", "Run `pip install 'fullft-cluster[slurm]'`.")
            ) from None
        slurm = config.slurm
        executor = submitit.AutoExecutor(folder=run.logs / "prepare", cluster="slurm")
        executor.update_parameters(
            name=f"{run.name}-prepare",
            timeout_min=max(1, slurm_time_seconds(slurm.prepare_time or slurm_time(PREPARE_SECONDS)) // 60),
            cpus_per_task=slurm.prepare_cpus,
            slurm_mem=slurm.prepare_mem,
            slurm_partition=slurm.prepare_partition or slurm.partition,
            slurm_account=slurm.account,
            slurm_qos=slurm.qos,
            stderr_to_stdout=True,
        )
        command = [python, "-m", "fullft_cluster.train.prepare", "--run", str(run.path)]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words come with the exception
                job = executor.submit(submitit.helpers.CommandFunction(command, verbose=False))
        except submitit.core.utils.FailedJobError as error:
            # submitit gives sbatch's stderr twice: by itself and in the words of its own exception.
            words = " ".join(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))
            raise SchedulerError(Problem("sbatch", f"refused the preparation job: {words}")) from None
        return str(job.job_id)

    def status(self, run: RunDir) -> Status:
        """Return the status from the run directory, squeue and sacct."""
        state = run.read_run()
        return read_status(run, {} if state.get("state") in ENDED else live_states([state]))

    def cancel(self, run: RunDir, *, now: bool) -> str:
        """Ask running workers for a checkpoint and an end; take a waiting job out of the queue."""
        state = run.read_run()
        active = slurm_cli.active_jobs()  # raises where SLURM is silent: a running job is owed its checkpoint
        ids = [str(state[key]) for key in ("job_id", "prepare_job_id") if str(state.get(key)) in active]
        running = str(state.get("job_id")) in ids and slurm_cli.job_state(str(state["job_id"])).state == "RUNNING"
        write_json(run.stop, {"reason": "cancelled", "time": time.time()})
        if running and not now:
            return "asked for a checkpoint and a stop"
        if ids:
            slurm_cli.call(["scancel", *ids])
        run.update_run(state="cancelled", reason="cancelled by the user", ended=time.time())
        return f"cancelled in SLURM ({', '.join(ids) or 'no job'})"

    def resume(self, run: RunDir, script: str) -> Submission:
        """Submit the run's script again. Raises UsageError while a job of the run is alive."""
        state = run.read_run()
        if str(state.get("job_id")) in slurm_cli.active_jobs():
            raise UsageError(Problem(run.name, f"waits or runs in SLURM (job {state['job_id']})", "Cancel it first."))
        if not run.data.exists():
            raise UsageError(Problem(run.name, "its data was never prepared", "Submit it again under a new name."))
        # Held until run.json names the new job: the supervisor that starts writes to the same file.
        job_id = self._sbatch(run, script, "--hold")
        try:
            run.reopen(job_id=job_id, excluded_nodes=[])
            slurm_cli.call(["scontrol", "release", job_id])
        except BaseException:
            slurm_cli.try_call(["scancel", job_id])
            raise
        return self._submission(run, job_id, None)
