"""One training process; the node agent starts as many on each node as it has GPUs.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python -m fullft_cluster.train.worker --run RUN --attempt K

Exit codes: 0 finished, 75 stopped on request, 93 a fault that a restart repeats, 1 anything else; see exits.py. Each
rank says more in RUN/exits/attempt-K/rank-R.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_cluster.checkpoints import attempt_fence
from fullft_cluster.errors import FullftError
from fullft_cluster.model import load_model
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import exits
from fullft_cluster.train.heartbeat import PHASE_SECONDS, keep_beating
from fullft_cluster.train.setup import Identity, Job, read_job, set_environment
from fullft_cluster.train.stop import StopFlag
from fullft_cluster.train.tracking import check_installed

if TYPE_CHECKING:
    from fullft_cluster.train.metrics import Metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, say how it ended, and leave the process without running its finalizers."""
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser(description="One training process of a run.")
    parser.add_argument("--run", required=True, metavar="RUN", help="the run directory")
    parser.add_argument("--attempt", required=True, type=int, help="number of this attempt, from 1")
    options = parser.parse_args(arguments)
    run = RunDir(Path(options.run).absolute())
    try:
        identity = Identity.from_environment(os.environ)
    except FullftError as error:
        print(error, file=sys.stderr, flush=True)
        _leave(exits.PERMANENT)
    _leave(work(run, options.attempt, identity, stop))


def _leave(code: int) -> None:
    """End at once: a gloo thread that wants the interpreter while it finalizes would abort (134) after a success."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(run: RunDir, attempt: int, identity: Identity, stop: StopFlag) -> int:
    """Train and write this rank's exit report; return the exit code."""
    progress = exits.Progress()
    try:
        attempt_fence(run, attempt)()
        run.beat(identity.rank, 0, "load")
        stopped = train(read_job(run, attempt, identity), stop, progress)
        code, kind, message = exits.DONE, "done", progress.finished
        if stopped:
            code, kind, message = exits.STOPPED, "stopped", "stopped on request"
    except BaseException as error:
        code, kind = exits.classify(error)
        message = str(error).strip() or type(error).__name__
        if isinstance(error, FullftError):
            print(message, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
    report = exits.ExitReport(
        rank=identity.rank, exit_code=code, kind=kind, message=message[-2000:], step=progress.step,
        resumed_from=progress.resumed_from, committed_step=progress.committed_step,
    )  # fmt: skip
    try:
        report.write(run, attempt)
    except OSError as error:
        print(f"cannot write the exit report: {error}", file=sys.stderr)
    return code


def train(job: Job, stop: StopFlag, progress: exits.Progress) -> bool:
    """Set up, resume, train and export; return whether it was stopped before the end."""
    set_environment(os.environ, job.plan.gpu)
    import torch.distributed as dist

    from fullft_cluster.train import checkpointing, comm, export
    from fullft_cluster.train.engine import compute_device, make_engine
    from fullft_cluster.train.loop import Trainer, beginning, open_data

    check_installed(job.config)
    device = compute_device(job.plan, job.identity.local_rank)
    start_process_group(job)
    # The first collective, while no thread keeps the heartbeat up: ranks that cannot reach each other are a hang.
    comm.sum_over_ranks([1.0], device)
    data = open_data(job)
    fresh = beginning(job, data)
    with keep_beating(job, 0, "load"):
        engine = make_engine(job, device, data.order.total_steps)
        found = checkpointing.resume(job, engine, fresh)
    progress.step = (found or fresh).step
    if found:
        progress.resumed_from = progress.committed_step = found.step
    trainer = Trainer(job, engine, data, stop)
    with metrics_of(job, data.order.total_steps, progress.step) as metrics:
        state, stopped = trainer.run(found or fresh, progress, metrics)
    progress.finished = state.finished
    if not stopped:
        with keep_beating(job, state.step, "export"):
            export.export(job, state.step)
    dist.barrier()
    return stopped


@contextlib.contextmanager
def metrics_of(job: Job, total_steps: int, first_step: int) -> Iterator[Metrics]:
    """Yield what writes the run's metrics (rank 0's is used alone); its trackers are closed whatever happens."""
    from fullft_cluster.train.metrics import Metrics
    from fullft_cluster.train.tracking import Trackers

    trackers = Trackers()
    if job.identity.rank == 0:
        with keep_beating(job, first_step, "load"):
            trackers.start(job, first_step)
    try:
        yield Metrics(job, load_model(job.config.model or ""), total_steps, trackers)
    finally:
        trackers.close()


def start_process_group(job: Job) -> None:
    """Connect the ranks: nccl on CUDA, gloo on CPUs; set the threads of a CPU process to its share of the cores."""
    import torch
    import torch.distributed as dist

    # The supervisor sees a hang before the collectives do, also in a phase in which one rank works and the others wait.
    limit = datetime.timedelta(seconds=PHASE_SECONDS + 2 * job.config.survival.hang_seconds)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // job.identity.local_world_size))
    if job.plan.engine == "fsdp":
        if dist.is_initialized():
            return
        # gloo beside nccl for what is offloaded to the host.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=limit)
        return
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Its shared-memory collectives are compiled at the first start (25 s, and a compiler); gloo serves without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=limit)


if __name__ == "__main__":
    main()
