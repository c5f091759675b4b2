"""What a pod runs: `make` makes the run directory on the volume, `node` is the agent of one node's workers."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from fullft_cluster.errors import FullftError, Problem, RunFailedError, UsageError
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, fsync_path, read_json, write_atomic
from fullft_cluster.runtime.pod_agent import ENDED_SECONDS, Agent
from fullft_cluster.runtime.policy import EXIT_DO_NOT_REQUEUE, EXIT_STOPPED

OF_DEEPSPEED = "deepspeed.json"
"""The one file that a run of FSDP does not have."""
FILES = ("config.yaml", "plan.json", OF_DEEPSPEED)
MANIFESTS = ("prepare.yaml", "supervisor.yaml", "job.yaml")
POLL_SECONDS = 1.0

DATA_SECONDS = 4 * 3600.0
"""How long a pod waits for the data: as long as its preparation may take on SLURM by default."""


def make(run: RunDir, files: Path) -> None:
    """Make the run directory with the files of a ConfigMap; one that has the same files is left as it is.

    It appears whole, by rename. Raises UsageError when another run's is there.
    """
    there = (name for name in FILES if name != OF_DEEPSPEED or (files / name).exists())
    texts = {name: (files / name).read_bytes() for name in there}
    manifests = {name: text for name in MANIFESTS if (text := _bytes(files / name)) is not None}
    if not run.path.exists():
        work = RunDir(run.path.with_name(f".{run.name}.{uuid.uuid4().hex}"))
        try:
            work.make()
            for name, text in {**texts, **manifests}.items():
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
    check_owner(run, files)
    if run.read_run().get("state") in ("failed", "cancelled"):
        run.reopen(excluded_nodes=[])  # submitted again: it goes on
    if _json(run.prepare_report).get("exit_code"):
        run.prepare_report.unlink()  # of a preparation before this one: the nodes wait for this one's


def check_owner(run: RunDir, files: Path) -> None:
    """Raise UsageError when the run directory is another run's: its files are not those of this one's ConfigMap.

    Two people who share a volume may choose one name in two namespaces, or one reuses a name after `delete`.
    """
    different = [name for name in FILES if _bytes(run.path / name) != _bytes(files / name)]
    if different:
        fix = "Give this run another --name, or delete what is there."
        raise UsageError(Problem(str(run.path), f"holds another run: {', '.join(different)} differ", fix))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def wait_for_data(run: RunDir, seconds: float = DATA_SECONDS) -> None:
    """Return once the data is prepared. Raises UsageError when that failed for good, RunFailedError when time is up."""
    deadline = time.monotonic() + seconds
    over = time.monotonic() + ENDED_SECONDS
    while True:
        report = _json(run.prepare_report)
        code = report.get("exit_code")
        if code == 0 and run.data.is_file():
            return
        if code == 2:
            errors = [str(error) for error in report.get("errors", ())]
            raise UsageError([Problem("the data preparation failed", error) for error in errors or ["it says no more"]])
        if (ended := run.read_run().get("state")) not in ("failed", "cancelled"):
            over = time.monotonic() + ENDED_SECONDS
        elif time.monotonic() > over:
            raise UsageError(Problem(run.name, f"is {ended}", "`fullft-cluster resume` goes on with it."))
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


def run_node(run: RunDir, files: Path, node_rank: int, stopped_exit: int) -> int:
    """Wait for the data, then be this node's agent; return the exit code of the container."""
    agent = Agent(run, node_rank, stopped_exit)
    agent.install_handlers()
    wait_for_data(run)
    check_owner(run, files)
    nodes = Plan.from_json(run.plan.read_bytes()).nodes
    if node_rank >= nodes:
        raise UsageError(Problem("--node-rank", f"{node_rank} is not below the plan's {nodes} nodes"))
    return agent.run()


def volume_words(error: OSError) -> str:
    """Return what to do about a volume that cannot be read or written."""
    if isinstance(error, PermissionError):
        who = f"{os.getuid()}:{os.getgid()}"
        fix = f"Write kubernetes.run_as_user and run_as_group of its owner, or `chown {who}` the directory."
        return str(Problem(str(error.filename), f"the user of this pod ({who}) has no permission", fix))
    return str(error)


def _node(run: RunDir, files: Path, node_rank: int, stopped_exit: int) -> int:
    """Return the exit code of the agent, whatever happens to it.

    A fault of the volume or of ours must not look like the workers' own 1, with which a PyTorchJob is over: the pod is
    made anew, and how often that helps is the supervisor's to count.
    """
    try:
        return run_node(run, files, node_rank, stopped_exit)
    except UsageError as error:
        print(error, file=sys.stderr)
        return EXIT_DO_NOT_REQUEUE
    except PermissionError as error:
        print(volume_words(error), file=sys.stderr)
        return EXIT_DO_NOT_REQUEUE
    except FullftError as error:
        print(error, file=sys.stderr)
        return stopped_exit
    except Exception:
        traceback.print_exc()
        return stopped_exit


def main(argv: list[str] | None = None) -> int:
    """Do one of the two; return the exit code: 93 for what a restart of the node repeats."""
    parser = argparse.ArgumentParser(prog="python -m fullft_cluster.runtime.pod", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    maker, worker = commands.add_parser("make"), commands.add_parser("node")
    for command in (maker, worker):
        command.add_argument("--run", type=Path, required=True)
        command.add_argument("--files", type=Path, required=True, help="the ConfigMap's, where it is mounted")
    worker.add_argument("--node-rank", type=int, required=True)
    worker.add_argument(
        "--stopped-exit", type=int, default=EXIT_STOPPED, help="exit code of a pod that was told to leave"
    )
    args = parser.parse_args(argv)
    try:
        if args.command == "node":
            return _node(RunDir(args.run), args.files, args.node_rank, args.stopped_exit)
        make(RunDir(args.run), args.files)
        return 0
    except OSError as error:
        print(volume_words(error), file=sys.stderr)
        return 2 if args.command == "make" and isinstance(error, PermissionError) else 1
    except FullftError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
