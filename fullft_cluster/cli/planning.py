"""The commands that make a job: render, submit, validate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from fullft_cluster.cli.options import (
    inventory_of,
    json_option,
    print_json,
    resolved_from,
    say,
    status_command,
    submit_options,
)
from fullft_cluster.config_load import Resolved
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.road import Ready, to_job


def _with_backend(resolved: Resolved) -> Resolved:
    """Return the configuration with a backend: SLURM where none was named."""
    return resolved if resolved.config.backend else resolved.changed(backend="slurm")


def make_ready(options: dict[str, Any], *, dry: bool, taken: Container[str] = ()) -> Ready:
    """Return the job that a command's options describe, and say what the user should know of it.

    ``dry``: nothing will run, so weights need not be found. ``taken``: names of runs in the cluster.
    """
    resolved = _with_namespace(_with_backend(resolved_from(options)), options.get("context"))
    inventory = inventory_of(resolved.config)
    ready = to_job(resolved, os.environ, inventory, weights_must_exist=not dry, taken=taken)
    for note in ready.notes:
        say(note)
    return ready


def _with_namespace(resolved: Resolved, context: str | None) -> Resolved:
    """Return the configuration with the namespace of the kubeconfig's context, where it names none itself."""
    if resolved.config.backend != "kubernetes" or "kubernetes.namespace" in resolved.origins:
        return resolved
    from fullft_cluster.kubernetes_api.connection import default_namespace

    namespace = default_namespace(context)
    if namespace is None:
        return resolved
    origins = {**resolved.origins, "kubernetes.namespace": "the kubeconfig's context"}
    return dataclasses.replace(resolved.changed(kubernetes__namespace=namespace), origins=origins)


@click.command()
@submit_options
@click.option("-o", "output", type=click.Path(path_type=Path), metavar="DIR", help="Write every file of the job there.")
def render(output: Path | None, **options: Any) -> None:
    """Print the exact script or manifests of a job, or write all its files (config, plan, ... too) to DIR."""
    ready = make_ready(options, dry=True)
    if output is None:
        click.echo(ready.rendered.script, nl=False)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in ready.rendered.files.items():
            (output / name).write_text(text)
            click.echo(output / name)
    except OSError as error:
        raise UsageError(Problem(str(output), f"cannot be written: {error.strerror}", "Give a directory.")) from None


@click.command()
@submit_options
@json_option
@click.option(
    "--dry-run",
    type=click.Choice(["client", "server"]),
    is_flag=False,
    flag_value="client",
    help="Print the bytes that would be submitted and change nothing; =server has the API server judge them.",
)
def submit(as_json: bool, dry_run: str | None, **options: Any) -> None:
    """Plan, render, prepare the data and submit. Prints the run's name."""
    from fullft_cluster.backends import backend_of

    on_kubernetes = resolved_from(options).config.backend == "kubernetes"
    if on_kubernetes and dry_run != "client":
        from fullft_cluster.cli.cluster_submit import submit_to_cluster

        submit_to_cluster(options, as_json=as_json, dry_run=dry_run is not None)
        return
    if dry_run == "server":
        what = "asks an API server, and this is no job for Kubernetes"
        raise UsageError(Problem("--dry-run=server", what, "Use --dry-run, or --backend kubernetes."))
    ready = make_ready(options, dry=dry_run is not None)
    if dry_run is not None:
        if as_json:
            print_json(ready.rendered)
        else:
            click.echo(ready.rendered.script, nl=False)
        say("nothing was changed; a submit makes the run directory and has the data prepared first")
        return
    backend = backend_of(ready.job.backend)
    backend.check()
    check_environment(ready.job.python)
    made_runs_dir = not ready.run_dir.parent.exists()
    run = _make_run_dir(ready)
    try:
        from fullft_cluster.config_load import read_config

        config = read_config(run.config)
        submission = backend.submit(run, config, str(run.path / ready.rendered.script_name), ready.job.python)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)  # nothing half-made is left behind
        if made_runs_dir:
            with contextlib.suppress(OSError):  # not empty: prepared data stays, for the next try
                run.path.parent.rmdir()
        raise
    say(f"run {submission.name} in {submission.run_dir}")
    for label, job_id in (("prepare job", submission.prepare_job_id), ("training job", submission.job_id)):
        if job_id:
            say(f"{label} {job_id}")
    say(f"follow it: {status_command(run)} --watch")
    if as_json:
        print_json(submission)
    else:
        click.echo(submission.name)


def check_environment(python: str) -> None:
    """Raise UsageError when jobs would run in this very environment, and it cannot train.

    The packages are looked for, not imported: that would take seconds.
    """
    if python != sys.executable:
        return  # of the cluster profile; it may not even be there on this host
    lacking = [name for name in ("torch", "transformers", "deepspeed", "numpy") if find_spec(name) is None]
    if lacking:
        what = f"jobs run in the environment that submits, and it has no {', '.join(lacking)}"
        fix = "Run `pip install 'fullft-cluster[train]'`, or name another interpreter as `python` in a cluster profile."
        raise UsageError(Problem("python", what, fix))


def _make_run_dir(ready: Ready) -> Any:
    """Make the run directory with every file of the job. Raises UsageError when it exists or cannot be made."""
    from fullft_cluster.rundir import RunDir, write_atomic

    run = RunDir(ready.run_dir)
    try:
        run.make()
    except FileExistsError:
        fix = f"Choose another --name, or go on with it: `fullft-cluster resume {run.name}`."
        raise UsageError(Problem(str(run.path), "the run directory exists", fix)) from None
    except OSError as error:
        fix = "Give --runs-dir on a file system that every node sees."
        raise UsageError(Problem(str(run.path), f"cannot be made: {error.strerror}", fix)) from None
    for name, text in ready.rendered.files.items():
        write_atomic(run.path / name, text)
    state = "preparing"
    run.update_run(
        name=run.name,
        backend=ready.job.backend,
        state=state,
        reason="data preparation",
        created=time.time(),
        attempt=0,
        restarts=0,
        job_id=None,
        prepare_job_id=None,
        world_size=ready.job.plan.gpus,
    )
    return run


@click.command()
@submit_options
def validate(**options: Any) -> None:
    """Check a configuration: every error at once. Prints the resolved values with their origins."""
    from fullft_cluster.config_load import to_yaml

    resolved = _with_backend(resolved_from(options))
    click.echo(to_yaml(resolved), nl=False)
    to_job(resolved, os.environ, inventory_of(resolved.config), weights_must_exist=False)
    say("valid")
