"""Starts the workers of one node and watches them: one task per node, a process per GPU.

It stands where torchrun would, because torchrun loses the workers' exit codes (always 1), kills 30 s after SIGTERM
whatever is being saved (https://github.com/pytorch/pytorch/issues/119856) and leaves orphans when its agent dies.
Here each worker's exit code is kept in a file, nothing is killed while a stop is under way, and workers die with
this process (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime.policy import EXIT_DONE, EXIT_STOPPED, node_exit_code

POLL_SECONDS = 0.2
PEERS_GRACE_SECONDS = 20.0
"""How long the other workers may take to notice and report, after one of them has failed; then they are killed."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Run in the child before exec: SIGKILL it when this process dies, so that no orphan goes on training."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def worker_environment(node_rank: int, local_rank: int, local_world_size: int, world_size: int) -> dict[str, str]:
    """Return the environment of one worker, in torchrun's names.

    MASTER_ADDR and MASTER_PORT are inherited from the batch script (or the local supervisor). OMP_NUM_THREADS, unless
    it is set, is the worker's share of the CPUs that this process may use: an offloaded optimizer is as fast as its
    threads are many, so one, as under torchrun, starves it, and all for every worker make them fight.
    """
    cpus = len(os.sched_getaffinity(0))
    return {
        "OMP_NUM_THREADS": str(max(cpus // local_world_size, 1)),
        **os.environ,
        "RANK": str(node_rank * local_world_size + local_rank),
        "LOCAL_RANK": str(local_rank),
        "NODE_RANK": str(node_rank),
        "GROUP_RANK": str(node_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


class Node:
    """The workers of one node."""

    def __init__(self, run: RunDir, attempt: int, node_rank: int) -> None:
        self.run, self.attempt, self.node_rank = run, attempt, node_rank
        self.workers: list[subprocess.Popen[bytes]] = []
        self.asked_to_stop = False

    def start(self) -> None:
        """Start a worker per GPU of the plan; their output goes to the log of this attempt and node."""
        plan = Plan.from_json(self.run.plan.read_bytes())
        log = self.run.node_log(self.attempt, self.node_rank)
        command = [sys.executable, "-m", "fullft_cluster.train.worker", "--run", str(self.run.path)]
        with log.open("ab") as out:
            for local_rank in range(plan.gpus_per_node):
                self.workers.append(
                    subprocess.Popen(
                        [*command, "--attempt", str(self.attempt)],
                        env=worker_environment(self.node_rank, local_rank, plan.gpus_per_node, plan.gpus),
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
                    )
                )

    def ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        """Remember a signal; the loop forwards it (no work in a signal handler)."""
        self.asked_to_stop = True

    def wait(self, given_up: Callable[[], bool] = lambda: False) -> list[int]:
        """Wait for all workers and return their exit codes, a negative one for a signal.

        ``given_up`` is asked all the time: once it returns True, the workers are killed.
        """
        failed_at: float | None = None
        while any(worker.poll() is None for worker in self.workers):
            time.sleep(POLL_SECONDS)
            if given_up():
                self._signal(signal.SIGKILL)
            if self.asked_to_stop:
                self.asked_to_stop = False
                self._signal(signal.SIGTERM)
            codes = [worker.poll() for worker in self.workers]
            if any(code not in (None, EXIT_DONE, EXIT_STOPPED) for code in codes):
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > PEERS_GRACE_SECONDS:
                    self._signal(signal.SIGKILL)
        return [worker.returncode for worker in self.workers]

    def _signal(self, signum: signal.Signals) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.send_signal(signum)

    def report(self, codes: list[int]) -> None:
        """Write how the workers ended, where the supervisor looks for it."""
        directory = self.run.exits(self.attempt)
        directory.mkdir(parents=True, exist_ok=True)
        node = os.environ.get("SLURMD_NODENAME") or os.environ.get("NODE_NAME") or socket.gethostname()
        write_json(
            directory / f"node-{self.node_rank}.json",
            {"node": node, "node_rank": self.node_rank, "exit_codes": codes, "time": time.time()},
        )


def main(argv: list[str] | None = None) -> int:
    """Start the workers of this node, wait for them, and return one exit code for all."""
    parser = argparse.ArgumentParser(prog="python -m fullft_cluster.runtime.node", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node-rank", type=int, default=int(os.environ.get("SLURM_NODEID", "0")))
    args = parser.parse_args(argv)
    node = Node(RunDir(args.run), args.attempt, args.node_rank)
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(signum, node.ask_to_stop)
    node.start()
    codes = node.wait()
    node.report(codes)
    return node_exit_code(codes)


if __name__ == "__main__":
    sys.exit(main())
