"""The commands of a run's life: status, list, logs, cancel, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fullft_cluster.backends import Backend, backend_of, live_states
from fullft_cluster.cli.options import find_run, json_option, print_json, runs_dir_option, say, status_command
from fullft_cluster.cli.view import follow_logs, print_log, print_runs, print_status, watch
from fullft_cluster.errors import FullftError, Problem, UsageError
from fullft_cluster.render import SCRIPTS
from fullft_cluster.rundir import RunDir
from fullft_cluster.status import Live, Status, read_status

FAILED = 1


def _backend(run: RunDir) -> Backend:
    return backend_of(str(run.read_run().get("backend")))


def _complete_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    root = Path(context.params.get("runs_dir") or "runs")
    return sorted(path.parent.name for path in root.glob("*/run.json") if path.parent.name.startswith(incomplete))


run_argument = click.argument("name", shell_complete=_complete_runs)


@click.command()
@run_argument
@runs_dir_option
@json_option
@click.option("--watch", "watching", is_flag=True, help="Show progress until the run ends.")
def status(name: str, runs_dir: str | None, as_json: bool, watching: bool) -> int:
    """Show what a run is doing, and each of its attempts. Exit code 1 when it has failed."""
    run = find_run(name, runs_dir)
    backend = _backend(run)
    now = watch(lambda: backend.status(run), as_json=as_json) if watching else backend.status(run)
    if as_json:
        if not watching:
            print_json(now)
    else:
        print_status(now)
    return FAILED if now.state == "failed" else 0


@click.command("list")
@runs_dir_option
@json_option
def list_runs(runs_dir: str | None, as_json: bool) -> None:
    """List the runs, newest first."""
    states: dict[Path, dict[str, Any]] = {}
    for path in Path(runs_dir or "runs").glob("*/run.json"):
        run = RunDir(path.parent.absolute())
        try:
            states[run.path] = run.read_run()
        except FullftError as error:  # one damaged run does not hide the others
            say(f"warning: {error}")
    open_slurm = [s for s in states.values() if s.get("backend") == "slurm" and not s.get("ended")]
    live = live_states(open_slurm) if open_slurm else {}
    newest_first = sorted(states, key=lambda path: states[path].get("created") or 0.0, reverse=True)
    statuses = [_listed(RunDir(path), states[path], live) for path in newest_first]
    if as_json:
        print_json(statuses)
    elif statuses:
        print_runs(statuses)
    else:
        say(f"no runs in {Path(runs_dir or 'runs')}")


def _listed(run: RunDir, state: dict[str, Any], live: Live) -> Status:
    """Return one run's status, SLURM having been asked for all of them in one call."""
    return _backend(run).status(run) if state.get("backend") == "local" else read_status(run, live)


@click.command()
@run_argument
@runs_dir_option
@json_option
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the run ends.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only this attempt; default the newest.")
@click.option("--all", "everything", is_flag=True, help="Every log of every attempt.")
@click.option("--tail", "lines", type=click.IntRange(min=0), default=200, show_default=True, help="Lines of each log.")
def logs(name: str, runs_dir: str | None, *, attempt: int | None, everything: bool, **shown: Any) -> None:
    """Print the logs of a run: the supervisor's and, by attempt and node, the workers'.

    With --json each line is an object: log, line.
    """
    run = find_run(name, runs_dir)
    as_json, follow, lines = shown["as_json"], shown["follow"], shown["lines"]
    files = sorted(run.logs.rglob("*.log")) + sorted(run.logs.rglob("*.out"))
    if not everything:
        chosen = attempt or int(run.read_run().get("attempt", 0))
        files = [file for file in files if f"attempt-{chosen}-" in file.name or "attempt-" not in file.name]
    if attempt is not None and not any(f"attempt-{attempt}-" in file.name for file in files):
        newest = run.read_run().get("attempt", 0)
        raise UsageError(Problem(run.name, f"has no logs of an attempt {attempt}", f"Its newest attempt is {newest}."))
    if not files and not follow:
        raise UsageError(Problem(run.name, "has no logs yet", "Wait until its job has started, or use --follow."))
    seen = {}
    for file in files:
        seen[file] = print_log(run, file, lines, as_json=as_json)
    if follow:
        backend = _backend(run)
        follow_logs(run, seen, lambda: backend.status(run), as_json=as_json)


@click.command()
@run_argument
@runs_dir_option
@json_option
@click.option("--now", is_flag=True, help="End it at once, without a checkpoint.")
def cancel(name: str, runs_dir: str | None, as_json: bool, now: bool) -> None:
    """End a run: a checkpoint first, unless --now. `resume` goes on with it."""
    run = find_run(name, runs_dir)
    backend = _backend(run)
    before = backend.status(run)
    if before.state in ("completed", "failed", "cancelled"):
        raise UsageError(Problem(run.name, f"has ended already ({before.state})"))
    done = backend.cancel(run, now=now)
    if as_json:
        print_json({"name": run.name, "done": done})
    say(f"{run.name}: {done}")


@click.command()
@run_argument
@runs_dir_option
@json_option
def resume(name: str, runs_dir: str | None, as_json: bool) -> None:
    """Start a run that has ended again, from its newest good checkpoint."""
    run = find_run(name, runs_dir)
    backend = _backend(run)
    state = backend.status(run).state
    if state == "completed":
        raise UsageError(Problem(run.name, "is completed", "Submit a new run to train further."))
    script = run.path / SCRIPTS[str(run.read_run()["backend"])]
    submission = backend.resume(run, str(script))
    if as_json:
        print_json(submission)
    else:
        click.echo(submission.name)
    say(f"follow it: {status_command(run)} --watch")
