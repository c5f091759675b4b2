"""What a pod runs: `make` makes the run directory on the volume, `node` runs one node's workers in one attempt.

On SLURM one supervisor starts every node and numbers the attempts. Pods start by themselves, so they agree by files on
the volume that they share: each writes a ticket that is new in each life of a pod, and node 0 opens the next attempt
with the tickets of all nodes, once none of them is of an attempt before. A pod belongs to the attempt that names its
ticket; what a past attempt left is never taken for the present one. Nothing here restarts anything: that is the part of
the kind of job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

from fullft_cluster.errors import FullftError, Problem, RunFailedError, UsageError
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, fsync_path, read_json, write_atomic, write_json
from fullft_cluster.runtime import node
from fullft_cluster.runtime.evidence import newest_committed_step
from fullft_cluster.runtime.policy import EXIT_DO_NOT_REQUEUE, EXIT_STOPPED

FILES = ("config.yaml", "plan.json", "deepspeed.json")
POLL_SECONDS = 1.0

DATA_SECONDS = 4 * 3600.0
"""How long a pod waits for the data: as long as its preparation may take on SLURM by default."""

PEERS_SECONDS = 1800.0
"""How long a pod waits for the others: what a node may take to pull a large image. Default."""


def make(run: RunDir, files: Path) -> None:
    """Make the run directory with the files of a ConfigMap; one that has the same files is left as it is.

    It appears whole, by rename. Raises UsageError when another run's is there.
    """
    texts = {name: (files / name).read_bytes() for name in FILES}
    if not run.path.exists():
        work = RunDir(run.path.with_name(f".{run.name}.{uuid.uuid4().hex}"))
        try:
            work.make()
            for name, text in texts.items():
                write_atomic(work.path / name, text)
            work.update_run(
                name=run.name,
                backend="kubernetes",
                state="preparing",
                reason="data preparation",
                created=time.time(),
                attempt=0,
                restarts=0,
                world_size=Plan.from_json(texts["plan.json"]).gpus,
            )
            with contextlib.suppress(OSError):  # another pod was quicker: its files are compared
                work.path.rename(run.path)
                fsync_path(run.path.parent)
        finally:
            shutil.rmtree(work.path, ignore_errors=True)
    different = [name for name, text in texts.items() if _bytes(run.path / name) != text]
    if different:
        fix = "Give this run another --name, or delete what is there."
        raise UsageError(Problem(str(run.path), f"holds another run: {', '.join(different)} differ", fix))
    if _json(run.prepare_report).get("exit_code"):
        run.prepare_report.unlink()  # of a preparation before this one: the nodes wait for this one's


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def wait_for_data(run: RunDir, seconds: float = DATA_SECONDS) -> None:
    """Return once the data is prepared. Raises UsageError when that failed for good, RunFailedError when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        report = _json(run.prepare_report)
        code = report.get("exit_code")
        if code == 0 and run.data.is_file():
            return
        if code == 2:
            errors = [str(error) for error in report.get("errors", ())]
            raise UsageError([Problem("the data preparation failed", error) for error in errors or ["it says no more"]])
        if time.monotonic() > deadline:
            fix = f"Look at the logs of job {run.name}-prepare."
            raise RunFailedError(Problem(str(run.data), f"is not there after {seconds:.0f} s", fix))
        time.sleep(POLL_SECONDS)


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one when there is none (yet)."""
    try:
        value = read_json(path)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class Meeting:
    """The pods of one run, as they agree on an attempt."""

    def __init__(self, run: RunDir, node_rank: int, nodes: int) -> None:
        self.run, self.node_rank, self.nodes = run, node_rank, nodes
        self.directory = run.path / "control" / "pods"
        self.opened = self.directory / "attempt.json"
        self.ticket = uuid.uuid4().hex

    def join(self, host: str, seconds: float = PEERS_SECONDS) -> int:
        """Return the number of the attempt once every node is there. Raises RunFailedError when time is up."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self._path(self.node_rank), {"ticket": self.ticket, "node": host})
        deadline = time.monotonic() + seconds
        while True:
            if self.node_rank == 0:
                self._open()
            attempt = _json(self.opened)
            if self.ticket in attempt.get("tickets", ()):
                return int(attempt["attempt"])
            if time.monotonic() > deadline:
                missing = ", ".join(str(rank) for rank in range(self.nodes) if not self._is_new(rank, attempt))
                what = f"no attempt began within {seconds:.0f} s"
                what += f": nothing new of node {missing}" if missing else ""
                raise RunFailedError(Problem(self.run.name, what, "Look at the events of the pods."))
            time.sleep(POLL_SECONDS)

    def _path(self, rank: int) -> Path:
        return self.directory / f"node-{rank}.json"

    def _is_new(self, rank: int, attempt: dict[str, Any]) -> bool:
        ticket = _json(self._path(rank)).get("ticket")
        return ticket is not None and ticket not in attempt.get("tickets", ())

    def _open(self) -> None:
        """Open the next attempt if every node has a ticket that no attempt has named.

        run.json comes first: a worker looks there whether its attempt is the current one.
        """
        before = _json(self.opened)
        if not all(self._is_new(rank, before) for rank in range(self.nodes)):
            return
        pods = [_json(self._path(rank)) for rank in range(self.nodes)]
        state = self.run.read_run()
        attempt = int(state.get("attempt") or 0) + 1
        self.run.stop.unlink(missing_ok=True)  # honoured by the attempt before
        self.run.exits(attempt).mkdir(parents=True, exist_ok=True)
        self.run.update_run(
            state="running",
            reason="",
            attempt=attempt,
            attempt_started=time.time(),
            nodes=[pod["node"] for pod in pods],
            restarts=attempt - 1,
            started_from_step=newest_committed_step(self.run),
        )
        write_json(self.opened, {"attempt": attempt, "tickets": [pod["ticket"] for pod in pods]})


def run_node(run: RunDir, node_rank: int) -> int:
    """Wait for data and peers, run this node's workers, and return the exit code for all of them."""
    wait_for_data(run)
    nodes = Plan.from_json(run.plan.read_bytes()).nodes
    if node_rank >= nodes:
        raise UsageError(Problem("--node-rank", f"{node_rank} is not below the plan's {nodes} nodes"))
    attempt = Meeting(run, node_rank, nodes).join(os.environ.get("NODE_NAME") or os.uname().nodename)
    print(f"attempt {attempt}, node {node_rank} of {nodes}; the workers' output: {run.node_log(attempt, node_rank)}")
    sys.stdout.flush()
    return node.main(["--run", str(run.path), "--attempt", str(attempt), "--node-rank", str(node_rank)])


def _leave(signum: int, frame: FrameType | None) -> None:
    """End a pod that still waits: the first process of a container ignores SIGTERM unless it has a handler."""
    raise SystemExit(EXIT_STOPPED)


def main(argv: list[str] | None = None) -> int:
    """Do one of the two; return the exit code: 93 for what a restart of the node repeats."""
    parser = argparse.ArgumentParser(prog="python -m fullft_cluster.runtime.pod", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    maker, worker = commands.add_parser("make"), commands.add_parser("node")
    for command in (maker, worker):
        command.add_argument("--run", type=Path, required=True)
    maker.add_argument("--files", type=Path, required=True)
    worker.add_argument("--node-rank", type=int, required=True)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _leave)
    try:
        if args.command == "node":
            return run_node(RunDir(args.run), args.node_rank)
        make(RunDir(args.run), args.files)
        return 0
    except FullftError as error:
        print(error, file=sys.stderr)
        return EXIT_DO_NOT_REQUEUE if args.command == "node" and isinstance(error, UsageError) else error.exit_code


if __name__ == "__main__":
    sys.exit(main())
