"""The commands of a run's life: status, list, logs, cancel, resume, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fullft_cluster.backends import backend_of, live_states
from fullft_cluster.cli.options import find_run, json_option, print_json, runs_dir_option, say
from fullft_cluster.cli.target import (
    WHERE,
    ClusterTarget,
    cluster_backend,
    find_target,
    in_cluster,
    where_options,
)
from fullft_cluster.cli.view import (
    follow_logs,
    follow_pods,
    print_log,
    print_pods,
    print_runs,
    print_status,
    watch,
)
from fullft_cluster.errors import FullftError, Problem, UsageError
from fullft_cluster.rundir import RunDir
from fullft_cluster.status import ENDED, Live, Status, read_status

FAILED = 1


def _complete_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    root = Path(context.params.get("runs_dir") or "runs")
    return sorted(path.parent.name for path in root.glob("*/run.json") if path.parent.name.startswith(incomplete))


run_argument = click.argument("name", shell_complete=_complete_runs)


def _where(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options.pop(key) for key in WHERE}


@click.command()
@run_argument
@runs_dir_option
@where_options
@json_option
@click.option("--watch", "watching", is_flag=True, help="Show progress until the run ends.")
def status(name: str, runs_dir: str | None, as_json: bool, watching: bool, **where: Any) -> int:
    """Show what a run is doing, and each of its attempts. Exit code 1 when it has failed."""
    target = find_target(name, runs_dir, where)
    now = watch(target.status, as_json=as_json) if watching else target.status()
    if as_json:
        if not watching:
            print_json(now)
    else:
        print_status(now)
    return FAILED if now.state == "failed" else 0


@click.command("list")
@runs_dir_option
@where_options
@json_option
def list_runs(runs_dir: str | None, as_json: bool, **where: Any) -> None:
    """List the runs, newest first: those of a directory, or of a namespace with --backend kubernetes."""
    if in_cluster(where):
        backend = cluster_backend(where)
        statuses, place = backend.statuses(), f"namespace {backend.namespace}"
    else:
        statuses, place = _runs_in(Path(runs_dir or "runs"), where["backend"]), str(Path(runs_dir or "runs"))
    if as_json:
        print_json(statuses)
    elif statuses:
        print_runs(statuses)
    else:
        say(f"no runs in {place}")


def _runs_in(root: Path, backend: str | None) -> list[Status]:
    """Return the runs of a directory, of one backend if it is named."""
    states: dict[Path, dict[str, Any]] = {}
    for path in root.glob("*/run.json"):
        run = RunDir(path.parent.absolute())
        try:
            states[run.path] = run.read_run()
        except FullftError as error:  # one damaged run does not hide the others
            say(f"warning: {error}")
    states = {path: state for path, state in states.items() if backend in (None, state.get("backend"))}
    open_slurm = [s for s in states.values() if s.get("backend") == "slurm" and not s.get("ended")]
    live = live_states(open_slurm) if open_slurm else {}
    newest_first = sorted(states, key=lambda path: states[path].get("created") or 0.0, reverse=True)
    return [_listed(RunDir(path), states[path], live) for path in newest_first]


def _listed(run: RunDir, state: dict[str, Any], live: Live) -> Status:
    """Return one run's status, SLURM having been asked for all of them in one call."""
    return backend_of("local").status(run) if state.get("backend") == "local" else read_status(run, live)


@click.command()
@run_argument
@runs_dir_option
@where_options
@json_option
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the run ends.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only this attempt; default the newest.")
@click.option("--all", "everything", is_flag=True, help="Every log of every attempt.")
@click.option(
    "--previous", "-p", is_flag=True, help="Kubernetes: of the containers before these, which were restarted."
)
@click.option("--tail", "lines", type=click.IntRange(min=0), default=200, show_default=True, help="Lines of each log.")
def logs(name: str, runs_dir: str | None, **options: Any) -> None:
    """Print the logs of a run: the supervisor's and, by attempt and node, the workers'; on Kubernetes all its pods'.

    With --json each line is an object: log, line.
    """
    where = _where(options)
    if in_cluster(where):
        _pod_logs(name, where, options)
        return
    if options["previous"]:
        raise UsageError(Problem("--previous", "is of Kubernetes", "Use --attempt, or --backend kubernetes."))
    _log_files(find_run(name, runs_dir), runs_dir, where, options)


def _log_files(run: RunDir, runs_dir: str | None, where: dict[str, Any], options: dict[str, Any]) -> None:
    as_json, attempt = options["as_json"], options["attempt"]
    files = sorted(run.logs.rglob("*.log")) + sorted(run.logs.rglob("*.out"))
    if not options["everything"]:
        chosen = attempt or int(run.read_run().get("attempt", 0))
        files = [file for file in files if f"attempt-{chosen}-" in file.name or "attempt-" not in file.name]
    if attempt is not None and not any(f"attempt-{attempt}-" in file.name for file in files):
        newest = run.read_run().get("attempt", 0)
        raise UsageError(Problem(run.name, f"has no logs of an attempt {attempt}", f"Its newest attempt is {newest}."))
    if not files and not options["follow"]:
        raise UsageError(Problem(run.name, "has no logs yet", "Wait until its job has started, or use --follow."))
    seen = {}
    for file in files:
        seen[file] = print_log(run, file, options["lines"], as_json=as_json)
    if options["follow"]:
        target = find_target(str(run.path), runs_dir, where)
        follow_logs(run, seen, target.status, as_json=as_json)


def _pod_logs(name: str, where: dict[str, Any], options: dict[str, Any]) -> None:
    refused = [f"--{key}" for key, given in (("attempt", "attempt"), ("all", "everything")) if options[given]]
    if refused:
        fix = "The logs of every attempt are in RUN/logs on the volume."
        raise UsageError(
            Problem(refused[0], "is of the log files in a run directory; here are the pods' own logs", fix)
        )
    if options["follow"] and options["previous"]:
        raise UsageError(Problem("--previous", "has ended, so it cannot be followed", "Leave one of them out."))
    backend = cluster_backend(where)
    if options["follow"]:
        follow_pods(backend, name, tail=options["lines"], as_json=options["as_json"])
    elif not print_pods(backend, name, options):
        hint = f"`fullft-cluster status {name} {backend.flags}` says what it waits for; --follow waits as well."
        raise UsageError(Problem(name, "has no logs: none of its pods has started", hint))


@click.command()
@run_argument
@runs_dir_option
@where_options
@json_option
@click.option("--now", is_flag=True, help="End it at once, without a checkpoint.")
def cancel(name: str, runs_dir: str | None, as_json: bool, now: bool, **where: Any) -> None:
    """End a run: a checkpoint first, unless --now. `resume` goes on with it."""
    target = find_target(name, runs_dir, where)
    before = target.status()
    if before.state in ENDED:
        raise UsageError(Problem(target.name, f"has ended already ({before.state})"))
    done = target.cancel(now=now)
    if as_json:
        print_json({"name": target.name, "done": done})
    say(f"{target.name}: {done}")


@click.command()
@run_argument
@runs_dir_option
@where_options
@json_option
@click.option("--nodes", type=click.IntRange(min=1), help="Go on with so many nodes. [default: as before]")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="Go on with so many GPUs each. [default: as before]")
def resume(name: str, runs_dir: str | None, as_json: bool, **options: Any) -> None:
    """Start a run that has ended again, from its newest good checkpoint.

    On other GPUs than before it is planned anew; what is learnt, the global batch first of all, stays as it is.
    """
    where = _where(options)
    target = find_target(name, runs_dir, where)
    state = target.status().state
    if state == "completed":
        raise UsageError(Problem(target.name, "is completed", "Submit a new run to train further."))
    if options["nodes"] or options["gpus_per_node"]:
        target.relayout(options["nodes"], options["gpus_per_node"])
    submission = target.resume()
    if as_json:
        print_json(submission)
    else:
        click.echo(submission.name)
    say(f"follow it: {target.status_command} --watch")


@click.command()
@run_argument
@runs_dir_option
@where_options
@json_option
@click.option("--now", is_flag=True, help="Even while it runs, without a checkpoint.")
@click.option("--storage", is_flag=True, help="Its own claim too, with every checkpoint and the export.")
def delete(name: str, runs_dir: str | None, as_json: bool, now: bool, storage: bool, **where: Any) -> None:
    """Delete a run's objects from a Kubernetes cluster. Its checkpoints stay, unless --storage."""
    target = find_target(name, runs_dir, where)
    if not isinstance(target, ClusterTarget):
        fix = f"End it by `fullft-cluster cancel {name}`; its directory is yours to delete."
        raise UsageError(Problem(target.name, "has no objects in a cluster", fix))
    gone = target.backend.delete(target.name, now=now, storage=storage, say=say)
    if as_json:
        print_json({"name": target.name, "deleted": gone})
    else:
        click.echo(target.name)
