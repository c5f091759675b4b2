"""One run on the lab, driven as a user drives it: by the command line, with the files of its directory as evidence."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class Run:
    """A run directory and the processes that belong to it."""

    def __init__(self, place: Place, path: Path) -> None:
        self.place, self.path, self.lab = place, path, place.lab

    # --- what it says of itself
    def status(self) -> dict[str, Any]:
        """Return `status --json`."""
        done = self.place.cli("status", self.path.name, "--runs-dir", str(self.place.runs), "--json")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run directory; empty while there is none."""
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        return value

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of a .jsonl file of the run directory; empty while there is none."""
        try:
            text = (self.path / name).read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Return attempts.jsonl."""
        return self.lines("attempts.jsonl")

    @property
    def job_id(self) -> str:
        """Return the id of the training job."""
        return str(self.json("run.json")["job_id"])

    def losses(self) -> dict[int, float]:
        """Return the loss of each step; of a step that was computed twice, the last one, which the weights contain."""
        return {line["step"]: line["loss"] for line in self.lines("metrics.jsonl")}

    def weights(self) -> dict[str, str]:
        """Return a digest of each file of weights in the export."""
        files = sorted((self.path / "export").glob("*.safetensors"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def evidence(self) -> str:
        """Return what helps to find out why a test failed: the ends of the logs."""
        logs = [path for path in sorted((self.path / "logs").rglob("*")) if path.is_file()]
        parts = [f"--- {path.relative_to(self.path)}\n{path.read_text(errors='replace')[-3000:]}" for path in logs]
        queue = self.lab.run("squeue", "-o", "%i %j %T %r %N", check=False)
        return "\n".join(["", *parts, "--- attempts.jsonl", *map(str, self.attempts), f"--- squeue\n{queue}"])

    # --- waiting
    def until(self, what: str, probe: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait until `probe` is true and return its value; an end of the run in failure ends the wait at once."""

        def look() -> Any:
            if self.json("run.json").get("state") == "failed":
                raise AssertionError(f"the run failed while waiting for {what}{self.evidence()}")
            return probe()

        return wait_until(what, look, seconds, self.evidence)

    def step(self) -> int:
        """Return the last logged step."""
        lines = self.lines("metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def frozen_at(self, attempt: int, step: int) -> int:
        """Stop the workers' clocks once this attempt has logged that step; return the step at which they stand.

        Frozen workers make a test independent of the machine's speed: what is to happen in mid run does.
        """

        def reached() -> int | None:
            lines = self.lines("metrics.jsonl")
            return (
                int(lines[-1]["step"])
                if lines and lines[-1]["attempt"] == attempt and lines[-1]["step"] >= step
                else None
            )

        self.until(f"attempt {attempt} to log step {step}", reached)
        self._signal_workers(signal.SIGSTOP)
        assert self.step() < STEPS, "the run was over before it could be interrupted"
        return self.step()

    def thaw(self) -> None:
        """Let the workers go on."""
        self._signal_workers(signal.SIGCONT)

    def _signal_workers(self, signum: signal.Signals) -> None:
        for pid in self._workers():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue

    def _workers(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fullft_cluster.train.worker" in words and str(self.path).encode() in words:
                found.append(int(path.parent.name))
        return found

    def attempt_ended(self, attempt: int) -> dict[str, Any]:
        """Wait for the line of an attempt in attempts.jsonl and return it."""
        line: dict[str, Any] = self.until(
            f"attempt {attempt} to end",
            lambda: next((line for line in self.attempts if line["attempt"] == attempt), None),
        )
        return line

    def completed(self) -> dict[str, Any]:
        """Wait until the run is completed and its job has left the queue; return `status --json`."""
        self.until("the run to end", lambda: self.json("run.json").get("state") in ("completed", "cancelled"), 180)
        self.lab.wait(self.job_id)
        return self.status()
