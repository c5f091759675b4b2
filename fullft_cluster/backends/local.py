"""This machine: preparation inline, then the same supervisor as everywhere, detached from the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fullft_cluster.backends import Submission, reopen
from fullft_cluster.config import Config
from fullft_cluster.errors import Problem, RunFailedError, UsageError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.status import ENDED, Status, prepare_errors, read_status

START_SECONDS = 10.0
"""How long the supervisor may take to say that it lives."""


class LocalBackend:
    """Runs on this machine."""

    def check(self) -> None:
        """There is nothing to reach."""

    def submit(self, run: RunDir, config: Config, script: str) -> Submission:
        """Prepare the data in a process of its own (it needs the `train` extra), then start the script."""
        done = subprocess.run(
            [sys.executable, "-m", "fullft_cluster.train.prepare", "--run", str(run.path)],
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
        return read_status(run, {}, supervisor_alive=supervisor_alive(run.read_run()))

    def cancel(self, run: RunDir, *, now: bool) -> str:
        """Ask the workers for a checkpoint and an end; `now` kills them."""
        state = run.read_run()
        if not supervisor_alive(state):
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
        """Start the supervisor again. Raises UsageError while one is alive."""
        state = run.read_run()
        if supervisor_alive(state):
            raise UsageError(Problem(run.name, f"is running (pid {state['pid']})", "Cancel it first."))
        reopen(run, pid=None)
        return self._start(run, script)


def supervisor_alive(state: dict[str, Any]) -> bool:
    """Return whether the supervisor named in a run.json lives on this host; pids are reused, so its command counts."""
    if state.get("state") in ENDED:
        return False
    if not state.get("pid") or state.get("host") != os.uname().nodename:
        return False
    try:
        command = Path(f"/proc/{state['pid']}/cmdline").read_bytes()
    except OSError:
        return False
    return b"fullft_cluster.runtime.supervisor" in command
