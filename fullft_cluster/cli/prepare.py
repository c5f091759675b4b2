"""The command that prepares data, or shows what preparing it would give."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from fullft_cluster.cli.options import json_option, resolved_from, submit_options
from fullft_cluster.cli.planning import check_environment, make_ready
from fullft_cluster.errors import Problem, UsageError


@click.command()
@submit_options
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Prepare the data of this run directory.")
@click.option("--preview", "previewing", is_flag=True, help="Show what would be learnt, and write nothing.")
@click.option("--rows", type=click.IntRange(min=1), help="With --preview: rows to look at. [default: 10000]")
@click.option("--samples", type=click.IntRange(min=0), help="With --preview: rows to show. [default: 3]")
@json_option
def prepare(run_path: Path | None, previewing: bool, as_json: bool, **options: Any) -> None:
    """Tokenise and pack the data once, on CPUs. Prints the cache. Needs the `train` extra.

    --preview shows rows as they are learnt, their lengths, what packing saves, and which are dropped and why.
    """
    check_environment(sys.executable)
    if previewing:
        _preview(run_path, options, as_json=as_json)
    given = [f"--{name}" for name in ("rows", "samples") if options[name] is not None]
    if given:
        raise UsageError([Problem(flag, "is of --preview", "Add --preview, or leave it out.") for flag in given])
    if run_path is not None:
        _prepare(run_path.absolute(), as_json=as_json)
        return
    ready = make_ready(options, dry=False)
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in ready.rendered.files.items():
            (Path(scratch) / name).write_text(text)
        _prepare(Path(scratch), as_json=as_json)


def _prepare(run: Path, *, as_json: bool) -> None:
    """Prepare the data of a run directory in a process of its own, which imports what trains; print what was made."""
    command = [sys.executable, "-m", "fullft_cluster.train.prepare", "--run", str(run)]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        raise click.exceptions.Exit(code)
    text = (run / "data.json").read_text()
    click.echo(text.rstrip() if as_json else json.loads(text)["cache"])


def _preview(run: Path | None, options: dict[str, Any], *, as_json: bool) -> None:
    """Show what would be learnt, by a configuration or by that of a run; end with the exit code of the process."""
    from fullft_cluster.config_load import to_yaml
    from fullft_cluster.config_paths import absolute

    with tempfile.TemporaryDirectory() as scratch:
        path = run / "config.yaml" if run else Path(scratch) / "config.yaml"
        if run is None:
            path.write_text(to_yaml(absolute(resolved_from(options))))
        command = [sys.executable, "-m", "fullft_cluster.train.preview", "--config", str(path)]
        for name in ("rows", "samples"):
            command += [f"--{name}", str(options[name])] if options[name] is not None else []
        code = subprocess.run([*command, *(["--json"] if as_json else [])], check=False).returncode
    raise click.exceptions.Exit(code)
