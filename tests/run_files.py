"""A run directory as evidence in a scheduler's tests, and the workers of the run, which can be made to stand still."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any


class RunFiles:
    """The files of one run, and its workers among this machine's processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- what it says of itself
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

    def attempt_line(self, attempt: int) -> dict[str, Any] | None:
        """Return the line of an attempt that has ended."""
        return next((line for line in self.attempts if line["attempt"] == attempt), None)

    def step(self) -> int:
        """Return the last logged step."""
        lines = self.lines("metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def reached(self, attempt: int, step: int) -> int | None:
        """Return the last logged step if this attempt has come so far."""
        lines = self.lines("metrics.jsonl")
        there = bool(lines) and lines[-1]["attempt"] == attempt and lines[-1]["step"] >= step
        return int(lines[-1]["step"]) if there else None

    def losses(self) -> dict[int, float]:
        """Return the loss of each step; of a step that was computed twice, the last one, which the weights contain."""
        return {line["step"]: line["loss"] for line in self.lines("metrics.jsonl") if "loss" in line}

    def weights(self) -> dict[str, str]:
        """Return a digest of each file of weights in the export."""
        files = sorted((self.path / "export").glob("*.safetensors"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def logs(self) -> str:
        """Return the ends of all logs, and the attempts: what helps to find out why a test failed."""
        logs = [path for path in sorted((self.path / "logs").rglob("*")) if path.is_file()]
        parts = [f"--- {path.relative_to(self.path)}\n{path.read_text(errors='replace')[-3000:]}" for path in logs]
        return "\n".join(["", *parts, "--- attempts.jsonl", *map(str, self.attempts)])

    # --- the workers
    def workers(self) -> list[int]:
        """Return the pids of the run's workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fullft_cluster.train.worker" in words and str(self.path).encode() in words:
                found.append(int(path.parent.name))
        return found

    def freeze(self) -> None:
        """Stop the workers' clocks: what is to happen in mid run then does, whatever the machine's speed."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the workers go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, signum: signal.Signals) -> None:
        for pid in self.workers():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
