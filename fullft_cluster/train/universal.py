"""ZeRO's checkpoints at another number of processes: DeepSpeed's universal checkpoint, made once by rank 0.

    python -m fullft_cluster.train.universal SHARDS OUTPUT WORKERS

DeepSpeed's shards fit the number of processes that wrote them; its converter lays each weight and moment out whole, in
a file of its own, of which each process then takes its part (https://arxiv.org/abs/2406.18820). The result lies beside
the checkpoint while it is loaded, in a directory that no other attempt has, and is deleted after; the checkpoint itself
stays as it is. One that a kill left behind goes with the next conversion or commit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fullft_cluster.checkpoints import UNIVERSAL
from fullft_cluster.errors import Problem, RunFailedError
from fullft_cluster.runtime.node import die_with_parent
from fullft_cluster.train.stop import SIGNALS

SPACE = 2.5
"""Bytes that a conversion takes beside the checkpoint, in its size: the cut pieces and the joined tensors, 12 bytes a
parameter each, and a shard once more."""

_NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def convert(checkpoint: Path, shards: str, workers: int) -> Path:
    """Convert a checkpoint's directory `shards`; return the directory in which one of the same name now lies.

    `workers` processes share the work, each with a rank's shard in memory. Raises RunFailedError when it fails, or when
    the disk has too little room. Rank 0 alone; minutes for a large model.
    """
    for left in checkpoint.parent.glob(f"{UNIVERSAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    size = sum(path.stat().st_size for path in (checkpoint / shards).iterdir())
    free = shutil.disk_usage(checkpoint).free
    if free < SPACE * size:
        what = f"converting it to another number of processes takes {SPACE * size / 1e9:.1f} GB beside it, and "
        what += f"{free / 1e9:.1f} GB are free"
        raise RunFailedError(Problem(str(checkpoint), what, "Make room, or resume with as many GPUs as before."))
    root = Path(tempfile.mkdtemp(prefix=f"{UNIVERSAL}{checkpoint.name}-", dir=checkpoint.parent))
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "fullft_cluster.train.universal", str(checkpoint / shards), str(root / shards)]
    done = subprocess.run(
        [*command, str(workers)], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        shutil.rmtree(root, ignore_errors=True)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        what = f"DeepSpeed cannot convert it to another number of processes ({said})"
        raise RunFailedError(Problem(str(checkpoint), what, "Resume with as many GPUs as before."))
    return root


def main() -> None:
    """Convert, in a process of its own: it starts others by fork, which one with threads and a GPU must not."""
    die_with_parent()
    # The processes of DeepSpeed's pool would wait for work for ever, each with a shard in memory.
    os.register_at_fork(after_in_child=die_with_parent)
    for number in SIGNALS:  # a scheduler may warn every process of the job; the worker answers
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(description="Convert ZeRO's shards to a universal checkpoint.")
    parser.add_argument("shards")
    parser.add_argument("output")
    parser.add_argument("workers", type=int)
    options = parser.parse_args()
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=options.shards, output_folder=options.output, num_extract_workers=options.workers,
            num_merge_workers=options.workers, keep_temp_folder=False, strict=True,
            inject_missing_state=True,  # ZeRO-1 and 2 write it only under tensor parallelism
        )
    )  # fmt: skip
    slim(Path(options.output) / "zero" / "optimizer_state.pt")


def slim(path: Path) -> None:
    """Take the tensors out of optimizer_state.pt: under ZeRO-3 rank 0's whole shard, which every rank would read.

    They are in the files of their own too; what is asked of this one are settings and the step.
    """
    import torch

    def small(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: small(item) for key, item in value.items()}
        if isinstance(value, list):
            return [small(item) for item in value]
        if torch.is_tensor(value):
            return value.clone() if value.numel() == 1 else None  # a copy: the file is mapped, and written over
        return value

    torch.save(small(torch.load(path, mmap=True, weights_only=False)), path)


if __name__ == "__main__":
    main()
