"""This machine: preparation inline, then the same supervisor as everywhere, detached from the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fullft_cluster.backends import Submission
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, RunFailedError, UsageError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.status import ENDED, Status, SupervisorState, prepare_errors, read_status

START_SECONDS = 10.0
"""How long the supervisor may take to say that it lives."""


class LocalBackend:
    """Runs on this machine."""

    def check(self) -> None:
        """There is nothing to reach."""

    def submit(self, run: RunDir, config: Config, script: str, python: str) -> Submission:
        """Prepare the data in a process of its own (it needs the `train` extra), then start the script."""
        done = subprocess.run(
            [python, "-m", "fullft_cluster.train.prepare", "--run", str(run.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = prepare_errors(run) or done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise (UsageError if done.returncode == 2 else RunFailedError)(Problem("", words) for words in said)
        sys.stderr.write(done.stdout)
        run.update_run(state="pending", reason="")
        return self._start(run, script)

    def _start(self, run: RunDir, script: str) -> Submission:
        with (run.logs / "supervisor.log").open("ab") as out:
            child = subprocess.Popen(
                ["bash", script],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=run.path,
                start_new_session=True,  # it outlives this command and its terminal
            )
        deadline = time.monotonic() + START_SECONDS
        while run.read_run().get("pid") != child.pid and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if child.poll() not in (None, 0) and run.read_run().get("pid") != child.pid:
            raise RunFailedError(
                Problem(
                    str(run.logs / "supervisor.log"), f"the supervisor exited {child.returncode} at once", "Look there."
                )
            )
        return Submission(name=run.name, run_dir=str(run.path), backend="local", job_id=None, prepare_job_id=None)

    def status(self, run: RunDir) -> Status:
        """Return the status; a run whose supervisor is gone has failed."""
        return read_status(run, {}, supervisor=supervisor(run))

    def cancel(self, run: RunDir, *, now: bool) -> str:
        """Ask the workers for a checkpoint and an end; `now` kills them."""
        state, where = run.read_run(), supervisor(run)
        if where == "elsewhere" and now:
            raise UsageError(Problem(run.name, f"runs on {state['host']}", "Cancel it there, or without --now."))
        if where == "gone":
            run.update_run(state="cancelled", reason="cancelled by the user", ended=time.time())
            return "it was not running"
        write_json(run.stop, {"reason": "cancelled", "time": time.time()})
        if now:
            pid = int(state["pid"])
            os.kill(pid, signal.SIGKILL)  # its workers die with it (PR_SET_PDEATHSIG)
            run.update_run(state="cancelled", reason="cancelled by the user at once", ended=time.time())
            return "killed; the newest committed checkpoint stays"
        return "asked for a checkpoint and a stop"

    def resume(self, run: RunDir, script: str) -> Submission:
        """Start the supervisor again. Raises UsageError while one is alive, or may be on another host."""
        state, where = run.read_run(), supervisor(run)
        if where == "alive":
            raise UsageError(Problem(run.name, f"is running (pid {state['pid']})", "Cancel it first."))
        if where == "elsewhere":
            raise UsageError(
                Problem(run.name, f"was started on {state['host']}", "Resume it there, or cancel it first.")
            )
        run.reopen(pid=None)
        return self._start(run, script)


def supervisor(run: RunDir) -> SupervisorState:
    """Return where the supervisor named in run.json is. Pids are reused, so its command line has to name this run."""
    state = run.read_run()
    if state.get("state") in ENDED or not state.get("pid"):
        return "gone"
    if state.get("host") != os.uname().nodename:
        return "elsewhere"
    try:
        words = Path(f"/proc/{state['pid']}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    ours = b"fullft_cluster.runtime.supervisor" in words and os.fsencode(run.path) in words
    return "alive" if ours else "gone"
