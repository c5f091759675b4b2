"""The run directory: where each file lies, and how it is written. No torch; shared by every stage and by the workers.

Contract of the layout: docs/run-directory.md. Whole files are written by rename after fsync, so a reader never sees
half of one; logs of events (attempts.jsonl, metrics.jsonl) are appended a whole line at a time.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_cluster.errors import Problem, RunFailedError


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a directory's names, durable (a rename is not until its directory is synced)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file: temporary name, fsync, rename, fsync of the directory."""
    raw = data.encode() if isinstance(data, str) else data
    # In pods every writer has the process id 1, and several hosts write beside each other.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON by `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the JSON of a file, or None when there is no such file. Raises json.JSONDecodeError for broken JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def append_line(path: Path, value: Any, *, durable: bool = True) -> None:
    """Append one JSON line with a single write to a file in append mode, then fsync if it is to be durable."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, (json.dumps(value) + "\n").encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a .jsonl file; a torn last line (power loss) is passed over."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            yield value


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Making one touches nothing."""

    path: Path

    @property
    def name(self) -> str:
        """Return the run's name: the last part of its path."""
        return self.path.name

    # --- as submitted, byte for byte
    @property
    def config(self) -> Path:
        """Return the resolved configuration with the origin of each value."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """Return the plan."""
        return self.path / "plan.json"

    @property
    def deepspeed(self) -> Path:
        """Return the DeepSpeed JSON."""
        return self.path / "deepspeed.json"

    # --- the life of the run
    @property
    def run(self) -> Path:
        """Return run.json: ids, backend, state, current attempt, restarts."""
        return self.path / "run.json"

    @property
    def attempts(self) -> Path:
        """Return attempts.jsonl: one line an attempt that ended."""
        return self.path / "attempts.jsonl"

    @property
    def metrics(self) -> Path:
        """Return metrics.jsonl: one line a log step."""
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """Return data.json: which prepared cache the run maps."""
        return self.path / "data.json"

    @property
    def stop(self) -> Path:
        """Return control/stop: its presence asks for checkpoint-and-stop; its JSON says why (`{"reason": ...}`)."""
        return self.path / "control" / "stop"

    @property
    def checkpoint_request(self) -> Path:
        """Return control/checkpoint: its presence asks for a checkpoint without a stop."""
        return self.path / "control" / "checkpoint"

    @property
    def heartbeats(self) -> Path:
        """Return the directory of heartbeats: a file a rank."""
        return self.path / "heartbeat"

    @property
    def checkpoints(self) -> Path:
        """Return the directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Return the directory that `from_pretrained` loads."""
        return self.path / "export"

    @property
    def best(self) -> Path:
        """Return the directory of the weights with the lowest evaluation loss, as `from_pretrained` loads them."""
        return self.path / "best"

    @property
    def tensorboard(self) -> Path:
        """Return the directory of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def wandb_run(self) -> Path:
        """Return wandb.json: the id that the run has at W&B, over all attempts. Its own files lie in wandb/."""
        return self.path / "wandb.json"

    @property
    def logs(self) -> Path:
        """Return the directory of logs."""
        return self.path / "logs"

    def node_log(self, attempt: int, node_rank: int) -> Path:
        """Return the log of one node in one attempt."""
        return self.logs / f"attempt-{attempt}-node-{node_rank}.log"

    def exits(self, attempt: int) -> Path:
        """Return the directory where an attempt's node agents and workers say how they ended."""
        return self.path / "exits" / f"attempt-{attempt}"

    @property
    def prepare_report(self) -> Path:
        """Return exits/prepare.json: how the data preparation ended."""
        return self.path / "exits" / "prepare.json"

    def make(self) -> None:
        """Make the directories. Raises FileExistsError when the run directory exists."""
        self.path.mkdir(parents=True)
        for directory in (self.stop.parent, self.heartbeats, self.checkpoints, self.logs):
            directory.mkdir()

    # --- small states shared by several writers
    def read_run(self) -> dict[str, Any]:
        """Return run.json, or an empty dict before it is written. Raises RunFailedError for a damaged one."""
        try:
            state = read_json(self.run) or {}
        except ValueError:
            state = None
        if not isinstance(state, dict):
            raise RunFailedError(Problem(str(self.run), "is damaged", "It is written by rename: look at the disk."))
        return state

    def update_run(self, **changes: Any) -> dict[str, Any]:
        """Merge changes into run.json by rename, and return the whole.

        The supervisor is the only writer while an attempt is running; `submit`, `cancel` and `resume` write between.
        """
        run = {**self.read_run(), **changes}
        write_json(self.run, run)
        return run

    def reopen(self, **changes: Any) -> None:
        """Make a run that has ended ready for another attempt, with a clean budget of failures.

        An attempt that was cancelled at once has no line in attempts.jsonl yet; the supervisor writes it with this
        cause.
        """
        cancelled = self.read_run().get("state") == "cancelled"
        self.stop.unlink(missing_ok=True)
        lost_to = "cancelled" if cancelled else None
        self.update_run(state="pending", reason="resumed", history={}, lost_to=lost_to, ended=None, **changes)

    def stop_reason(self) -> str | None:
        """Return why a stop is asked for: None when it is not, ``stop_requested`` where the file does not say.

        Anybody may write it (`touch RUN/control/stop`), so any content is taken.
        """
        try:
            text = self.stop.read_bytes()
        except OSError:
            return None
        try:
            reason = json.loads(text)["reason"]
        except (ValueError, KeyError, TypeError, IndexError):
            return "stop_requested"
        return reason if isinstance(reason, str) else "stop_requested"

    def beat(self, rank: int, step: int, phase: str) -> None:
        """Write one rank's heartbeat: step, phase (`load`, `train`, `evaluate`, `save`, `export`), time.

        No fsync: a lost heartbeat costs nothing.
        """
        path = self.heartbeats / f"rank-{rank}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps({"rank": rank, "step": step, "phase": phase, "time": time.time()}))
        temporary.replace(path)
