"""Weights that `from_pretrained` loads: from a committed checkpoint, shard by shard, published by one rename.

    python -m fullft_cluster.train.export --run RUN --checkpoint RUN/checkpoints/step-N --output DIR

No GPU, no process group, and in memory never more than an output shard, the largest tensor in fp32, and `MAPPED_BYTES`
of the checkpoint's files. At the end of training rank 0 does the same, so that no host has to hold the whole model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fullft_cluster import checkpoints
from fullft_cluster.checkpoint_choice import choose_checkpoint
from fullft_cluster.config_load import read_config
from fullft_cluster.errors import FullftError, Problem, RunFailedError, UsageError
from fullft_cluster.hardware import CPU
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, fsync_path, read_json, write_json
from fullft_cluster.train.export_form import Form
from fullft_cluster.train.setup import Job, set_environment
from fullft_cluster.units import GB, in_gb

MARK = "fullft_cluster.json"
"""Says of which run and step an export is; only a directory that has it is replaced."""
INTERRUPTED = 130
BESIDE_BYTES = 64 * 10**6
"""More than tokenizer and configs take."""


def export(job: Job, step: int, target: Path | None = None) -> Path:
    """Export the committed checkpoint of `step` by rank 0 (a collective); nothing to do when that is there already.

    Raises RunFailedError or UsageError on all ranks alike.
    """
    from fullft_cluster.train import comm

    final = target or job.run.export

    def write() -> None:
        if mark_of(final).get("step") != step:
            checkpoints.attempt_fence(job.run, job.attempt)()
            form = Form(say=lambda text: print(f"export: {text}", flush=True))
            export_checkpoint(job.run, job.run.checkpoints / f"step-{step}", final, form)

    comm.on_rank_zero(write)
    return final


def export_checkpoint(run: RunDir, checkpoint: Path, target: Path, form: Form | None = None) -> Path:
    """Write the weights of a committed checkpoint to `target`, which `from_pretrained` loads, and return it.

    Written beside it first, reopened and compared, then renamed; an older export of the run makes room for it. Raises
    UsageError and RunFailedError, also when the disk is too full, which is known before the first byte.
    """
    from fullft_cluster.train import export_files
    from fullft_cluster.train.consolidate import MAPPED_BYTES, open_weights
    from fullft_cluster.train.tokenizer import load_tokenizer
    from fullft_cluster.train.weights import DTYPES

    form = form or Form()
    check_target(run, target)
    config = read_config(run.config)
    spec = load_model(config.model or "")
    dtype = DTYPES[form.dtype or Plan.from_json(run.plan.read_bytes()).precision]
    check_space(target, spec.parameters * dtype.itemsize)
    if form.verify:
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        form.say(f"comparing {in_gb(size / GB)} with their digests (--no-verify leaves it out)")
        choose_checkpoint(run, str(checkpoint), verify=True)
    weights = open_weights(checkpoint, min(MAPPED_BYTES, form.max_shard_bytes))
    names = export_files.names_to_write(weights, spec, checkpoint)
    facts = {
        "dtype": dtype, "vocab_size": weights.shapes[export_files.EMBEDDINGS][0],
        "end_of_turn_id": (read_json(run.data) or {}).get("end_of_turn_id"),
    }  # fmt: skip
    with replacing(target) as partial:
        export_files.write_weights(weights, names, partial, dtype, form)
        export_files.write_configs(config, spec, partial, load_tokenizer(config), facts)
        export_files.check_weights(weights, names, partial, dtype)
        step = checkpoints.inspect(checkpoint).step
        write_json(partial / MARK, {"run": run.name, "step": step, "dtype": str(dtype).removeprefix("torch.")})
    return target


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` when the block ends well, and is gone when it does not.

    Raises RunFailedError when the disk refuses.
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _make_durable(partial)
        _publish(partial, target)
    except OSError as error:
        where = str(error.filename or target)
        raise RunFailedError(Problem(where, f"cannot be written ({error.strerror or error})")) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def mark_of(target: Path) -> dict[str, Any]:
    """Return what an export says of itself: `run`, `step`, `dtype`; empty where there is none."""
    try:
        mark = read_json(target / MARK)
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def check_target(run: RunDir, target: Path) -> None:
    """Raise UsageError when there is something at `target` that is no export of this run."""
    if not target.exists():
        return
    fix = "Give another directory, or remove it."
    if not target.is_dir():
        raise UsageError(Problem(str(target), "is there, and is no directory", fix))
    mark = mark_of(target)
    if not mark and any(target.iterdir()):
        raise UsageError(Problem(str(target), f"is no export: it holds other files, and no {MARK}", fix))
    if mark and mark.get("run") != run.name:
        raise UsageError(Problem(str(target), f"is the export of another run ({mark.get('run')})", fix))


def check_space(target: Path, size: int) -> None:
    """Raise RunFailedError when the file system has no room for `size` bytes beside what is there."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size + BESIDE_BYTES:
        what = f"the export takes {in_gb(size / GB)}, and there are {in_gb(free / GB)} free"
        raise RunFailedError(Problem(str(target), what, "Make room, or export to another file system."))


def _make_durable(directory: Path) -> None:
    for path in directory.iterdir():
        fsync_path(path)
    fsync_path(directory)


def _publish(partial: Path, final: Path) -> None:
    """Rename the new export into place; an older one makes room for it first."""
    older = final.with_name(f"{final.name}.old")
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        final.rename(older)
    partial.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def main() -> int:
    """Run from a command line; print one line of JSON on stdout: the export, or the problems. Return the exit code."""
    parser = argparse.ArgumentParser(description="Export the weights of a committed checkpoint.")
    parser.add_argument("--run", required=True, type=Path, metavar="RUN", help="the run directory")
    parser.add_argument("--checkpoint", required=True, type=Path, help="the directory of the checkpoint")
    parser.add_argument("--output", required=True, type=Path, help="where to write")
    parser.add_argument("--dtype", choices=["bf16", "fp32"])
    parser.add_argument("--max-shard-bytes", type=int, default=Form.max_shard_bytes)
    parser.add_argument("--verify", action="store_true", help="compare the checkpoint's files with their digests first")
    options = parser.parse_args()
    set_environment(os.environ, CPU)
    form = Form(
        options.dtype, options.max_shard_bytes, options.verify, lambda text: print(text, file=sys.stderr, flush=True)
    )  # fmt: skip
    began = time.monotonic()
    said: dict[str, Any]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where libraries print
            made = export_checkpoint(RunDir(options.run), options.checkpoint, options.output, form)
        said = {
            "export": str(made),
            **mark_of(made),
            "seconds": round(time.monotonic() - began, 1),
        }
        code = 0
    except FullftError as error:
        said, code = {"problems": [vars(problem) for problem in error.problems]}, error.exit_code
    except KeyboardInterrupt:  # the command that started this says so
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        said, code = {"problems": [vars(Problem("export", f"{type(error).__name__}: {error}"))]}, 1
    print(json.dumps(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
