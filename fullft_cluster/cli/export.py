"""The commands of a run's weights: which checkpoints are on disk and good, and their export for `from_pretrained`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from fullft_cluster.checkpoint_choice import choose_checkpoint, verified
from fullft_cluster.checkpoints import Checkpoint, list_checkpoints
from fullft_cluster.cli.life import run_argument
from fullft_cluster.cli.options import find_run, json_option, print_json, runs_dir_option, say
from fullft_cluster.cli.planning import check_environment
from fullft_cluster.errors import FullftError, Problem, RunFailedError, UsageError
from fullft_cluster.units import GB, in_gb

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]B)", re.IGNORECASE)
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def shard_bytes(text: str) -> int:
    """Return the bytes in ``5GB`` or ``500MB``. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _BYTES[match[2].upper()]) if match else 0
    if not size:
        raise UsageError(Problem("--max-shard-size", f"{text!r} is not a size", "Write 5GB or 500MB."))
    return size


@click.command()
@run_argument
@runs_dir_option
@click.option("--checkpoint", "wanted", metavar="step-N|PATH", help="Which one. [default: the newest]")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="[default: RUN/export-step-N]")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="[default: the precision of training]")
@click.option("--max-shard-size", default="5GB", show_default=True, help="Of a file; as much is in memory.")
@click.option("--no-verify", is_flag=True, help="Do not compare the digests of the checkpoint's files first.")
@json_option
def export(name: str, runs_dir: str | None, wanted: str | None, **options: Any) -> None:
    """Write a checkpoint's weights as `from_pretrained` loads them. Prints the directory.

    No GPU is needed, and memory for one output file, not for the model. Needs the `train` extra.
    """
    run = find_run(name, runs_dir)
    size = shard_bytes(options["max_shard_size"])
    chosen = choose_checkpoint(run, wanted, verify=False)
    check_environment(sys.executable)
    target = (options["output"] or run.path / f"export-step-{chosen.step}").absolute()
    command = [
        sys.executable, "-m", "fullft_cluster.train.export", "--run", str(run.path), "--checkpoint", str(chosen.path),
        "--output", str(target), "--max-shard-bytes", str(size),
    ]  # fmt: skip
    command += ["--dtype", options["dtype"]] if options["dtype"] else []
    command += [] if options["no_verify"] else ["--verify"]
    made = _ask(command)
    if options["as_json"]:
        print_json(made)
    else:
        say(f"step {made['step']} in {made['dtype']}, {made['seconds']} s")
        click.echo(made["export"])


def _ask(command: list[str]) -> dict[str, Any]:
    """Run the interpreter with torch in it, and return what it prints; raise what it says is wrong."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RunFailedError(Problem("export", f"ended with exit code {done.returncode}", "See above.")) from None
    if done.returncode:
        error = FullftError(Problem(**problem) for problem in said["problems"])
        error.exit_code = done.returncode
        raise error
    return said


@click.command()
@run_argument
@runs_dir_option
@click.option("--verify", is_flag=True, help="Read every file and compare its digest.")
@json_option
def checkpoints(name: str, runs_dir: str | None, verify: bool, as_json: bool) -> int:
    """List a run's checkpoints: step, size, whether it is good, and why not. Exit code 1 when none is."""
    run = find_run(name, runs_dir)
    lines = [_line(found, verify=verify) for found in list_checkpoints(run.checkpoints)]
    if as_json:
        print_json(lines)
    elif not lines:
        say(f"{run.name} has committed no checkpoint yet")
    for line in () if as_json else lines:
        about = f"good{', digests compared' if verify else ''}" if line["good"] else f"bad: {line['reason']}"
        size = in_gb(line["bytes"] / GB) if line["bytes"] is not None else "-"
        click.echo(f"{Path(line['path']).name:16}{size:>12}  {line['processes'] or '-':>5} processes  {about}")
    return 0 if any(line["good"] for line in lines) else 1


def _line(found: Checkpoint, *, verify: bool) -> dict[str, Any]:
    reason = found.reason or (verified(found) if verify else "")
    manifest = found.manifest() if found.good else None
    return {
        "step": found.step, "path": str(found.path), "good": not reason, "reason": reason,
        "verified": verify and found.good,
        "bytes": sum(entry.bytes for entry in manifest.files) if manifest else None,
        "processes": manifest.world_size if manifest else None,
        "created": manifest.created if manifest else None,
    }  # fmt: skip
