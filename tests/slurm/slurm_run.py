"""One run on the lab, driven as a user drives it: by the command line, with the files of its directory as evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_files import RunFiles
from slurm_lab import Lab, wait_until

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from fullft_cluster.cli.main import main; sys.exit(main())"
STEPS = 30
SAVE_STEPS = 10
CLUSTER = Path(__file__).parent / "lab" / "cluster.yaml"
# Two nodes, two processes each, in fp32, so that two runs can be compared bit for bit.
SETTINGS = (
    "resources.nodes=2",
    "resources.gpus_per_node=2",
    "resources.micro_batch_size=1",
    "train.precision=fp32",
    "train.seq_len=128",
    "train.global_batch_size=8",
    f"train.max_steps={STEPS}",
    "train.learning_rate=1e-3",
    f"output.save_steps={SAVE_STEPS}",
    "slurm.time=01:00:00",
)


class Place:
    """Where the runs of a test session live, and the command line that works there."""

    def __init__(self, lab: Lab, directory: Path, data: Path) -> None:
        self.lab, self.directory, self.data = lab, directory, data
        self.runs = directory / "runs"
        self.env = {**lab.env, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def cli(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `fullft-cluster ARGUMENTS`; its exit code must be `code`."""
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def submit(
        self, name: str, *settings: str, dry_run: bool = False, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Submit a run of the tiny model by that name, with more settings after the usual ones."""
        sets = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        where = ["--cluster", str(CLUSTER), "--data", str(self.data), "--runs-dir", str(self.runs), "--name", name]
        dry = ["--dry-run"] if dry_run else []
        return self.cli("submit", "--backend", "slurm", "--model", "tiny", *where, *sets, *dry, code=code)

    def run(self, name: str) -> Run:
        """Return a handle on the run of that name."""
        return Run(self, self.runs / name)


class Run(RunFiles):
    """A run directory and the processes that belong to it."""

    def __init__(self, place: Place, path: Path) -> None:
        super().__init__(path)
        self.place, self.lab = place, place.lab

    # --- what it says of itself
    def status(self) -> dict[str, Any]:
        """Return `status --json`."""
        done = self.place.cli("status", self.path.name, "--runs-dir", str(self.place.runs), "--json")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    @property
    def job_id(self) -> str:
        """Return the id of the training job."""
        return str(self.json("run.json")["job_id"])

    def evidence(self) -> str:
        """Return what helps to find out why a test failed: the ends of the logs."""
        queue = self.lab.run("squeue", "-o", "%i %j %T %r %N", check=False)
        return f"{self.logs()}\n--- squeue\n{queue}"

    # --- waiting
    def until(self, what: str, probe: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait until `probe` is true and return its value; an end of the run in failure ends the wait at once."""

        def look() -> Any:
            if self.json("run.json").get("state") == "failed":
                raise AssertionError(f"the run failed while waiting for {what}{self.evidence()}")
            return probe()

        return wait_until(what, look, seconds, self.evidence)

    def frozen_at(self, attempt: int, step: int) -> int:
        """Stop the workers' clocks once this attempt has logged that step; return the step at which they stand.

        Frozen workers make a test independent of the machine's speed: what is to happen in mid run does.
        """

        self.until(f"attempt {attempt} to log step {step}", lambda: self.reached(attempt, step))
        self.freeze()
        assert self.step() < STEPS, "the run was over before it could be interrupted"
        return self.step()

    def attempt_ended(self, attempt: int) -> dict[str, Any]:
        """Wait for the line of an attempt in attempts.jsonl and return it."""
        line: dict[str, Any] = self.until(
            f"attempt {attempt} to end",
            lambda: self.attempt_line(attempt),
        )
        return line

    def completed(self) -> dict[str, Any]:
        """Wait until the run is completed and its job has left the queue; return `status --json`."""
        self.until("the run to end", lambda: self.json("run.json").get("state") in ("completed", "cancelled"), 180)
        self.lab.wait(self.job_id)
        return self.status()
