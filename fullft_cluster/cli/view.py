"""How a run is shown: tables and a progress bar on a terminal, plain lines elsewhere. rich is imported late."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fullft_cluster.rundir import RunDir
from fullft_cluster.status import ENDED, Status
from fullft_cluster.units import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fullft_cluster.backends.kubernetes import KubernetesBackend

POLL_SECONDS = 1.0
PIPED_WIDTH = 400
"""Characters of a line that is not for a terminal: nothing is cut off there."""


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else format(value, text)


def progress_line(now: Status) -> str:
    """Return one line about a run, the most important first: a terminal may cut its tail off."""
    parts = [f"step {now.step or 0}/{now.total_steps or '?'}"]
    parts += [now.phase] if now.phase not in (None, "train") else []
    parts += [f"{duration(now.eta_seconds)} left"] if now.eta_seconds is not None else []
    parts += [f"loss {now.loss:.4f}"] if now.loss is not None else []
    parts += [f"{now.tokens_per_second:,.0f} tokens/s"] if now.tokens_per_second is not None else []
    parts += [f"lr {now.learning_rate:.2e}"] if now.learning_rate is not None else []
    parts += [f"MFU {now.mfu:.1%}"] if now.mfu is not None else []
    parts += [f"evaluation loss {now.eval_loss:.4f}"] if now.eval_loss is not None else []
    return " | ".join(parts)


def _console() -> Console:
    """Return a console for tables: as wide as its terminal, and without a limit where the output is piped."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def _print_table(table: Table, console: Console) -> None:
    """Print a table; where it is not for a terminal, without the blanks that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as text:
        console.print(table)
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def print_status(now: Status) -> None:
    """Print a run for people."""
    console = _console()
    console.print(f"{now.name}: {now.state}{f' ({now.reason})' if now.reason else ''}", highlight=False, markup=False)
    facts = {
        "progress": progress_line(now),
        "run directory": now.run_dir,
        "job": now.job_id,
        "nodes": ", ".join(now.nodes),
        "last checkpoint": f"step {now.last_checkpoint_step}" if now.last_checkpoint_step is not None else None,
        "heartbeat": f"{now.heartbeat_age_seconds} s ago" if now.heartbeat_age_seconds is not None else None,
        "best": _best(now),
        "export": now.export,
    }
    for label, value in facts.items():
        if value:
            console.print(f"  {label:16}{value}", highlight=False, markup=False, soft_wrap=True)
    if not now.attempts:
        return
    _print_attempts(now, console)


def _best(now: Status) -> str | None:
    """Return the lowest evaluation loss with its step, and where its weights are."""
    if now.best_eval_loss is None:
        return None
    where = f" ({now.best})" if now.best else ""
    return f"evaluation loss {now.best_eval_loss:.4f} at step {now.best_step}{where}"


def _print_attempts(now: Status, console: Console) -> None:
    """Print a table of attempts, and below it what those that did not end as planned have to say."""
    from rich.text import Text

    table = _table("attempt", "cause", "decision", "steps", "lost", cut="nodes")
    for line in now.attempts:
        steps = f"{line.get('first_step') or '-'}..{line.get('last_step') or '-'}"
        cells = (line["attempt"], line["cause"], line["decision"], steps, duration(line.get("seconds_lost") or 0))
        table.add_row(*map(str, cells), Text(" ".join(line.get("nodes", ()))))
    _print_table(table, console)
    for line in now.attempts:
        message = str(line.get("message", ""))
        if message not in ("training finished", line["cause"].replace("_", " ")):
            console.print(Text(f"  {line['attempt']}: {message}"))


def _table(*whole: str, cut: str) -> Table:
    """Return a table whose columns are never wrapped; only the last one, `cut`, is cut off where there is no room."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in whole:
        table.add_column(name, no_wrap=True, min_width=len(name))
    table.add_column(cut, no_wrap=True, overflow="ellipsis")
    return table


def print_runs(runs: Iterable[Status]) -> None:
    """Print a table of runs."""
    from rich.text import Text

    table = _table("name", "state", "step", "loss", "backend", "job", "attempt", cut="reason")
    for run in runs:
        step = f"{run.step or 0}/{run.total_steps or '?'}"
        cells = (run.name, run.state, step, _number(run.loss, ".4f"), run.backend, run.job_id or "-", str(run.attempt))
        table.add_row(*cells, Text(" ".join(run.reason.split())))
    _print_table(table, _console())


def watch(read: Callable[[], Status], *, as_json: bool) -> Status:
    """Show a run's progress until it ends; one JSON line a change with `as_json`. Returns the last status."""
    if as_json or not sys.stderr.isatty():
        return _watch_lines(read, as_json=as_json)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=24)),
        BarColumn(bar_width=16),
        TextColumn(
            "{task.fields[line]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        now = read()
        task = bar.add_task(now.name, total=now.total_steps, line="")
        while now.state not in ENDED:
            state = f"{now.state}{f' ({now.reason})' if now.reason else ''}" if now.state != "running" else ""
            told = " | ".join(part for part in (state, progress_line(now), f"attempt {now.attempt}") if part)
            bar.update(task, completed=now.step or 0, total=now.total_steps, line=told)
            time.sleep(POLL_SECONDS)
            now = read()
    return now


def _watch_lines(read: Callable[[], Status], *, as_json: bool) -> Status:
    shown = None
    while True:
        now = read()
        key = (now.state, now.attempt, now.step, now.phase, now.reason)
        if key != shown:
            shown = key
            if as_json:
                click.echo(json.dumps(msgspec.to_builtins(now)))
            else:
                why = f" ({now.reason})" if now.reason else ""
                click.echo(f"{now.name}: {now.state}{why}, attempt {now.attempt} | {progress_line(now)}", err=True)
        if now.state in ENDED:
            return now
        time.sleep(POLL_SECONDS)


def print_log(run: RunDir, path: Path, lines: int, *, as_json: bool) -> int:
    """Print the last lines of one log under its name; return how many of its bytes are dealt with."""
    text = path.read_bytes()
    whole = text.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []
    if not as_json:
        click.echo(f"==> {path.relative_to(run.logs)} <==")
    for line in whole:
        _print_line(run, path, line, as_json=as_json, prefix=False)
    return len(text)


def _print_line(run: RunDir, path: Path, line: str, *, as_json: bool, prefix: bool) -> None:
    name = str(path.relative_to(run.logs))
    if as_json:
        click.echo(json.dumps({"log": name, "line": line}))
    else:
        click.echo(f"{path.stem}: {line}" if prefix else line)


def follow_logs(run: RunDir, seen: dict[Path, int], read: Callable[[], Status], *, as_json: bool) -> None:
    """Print what is appended to any log of a run, or to new ones, with the log's name, until the run has ended."""
    for path in run.logs.rglob("*.log"):
        seen.setdefault(path, path.stat().st_size)
    while True:
        ended = read().state in ENDED
        for path in sorted(run.logs.rglob("*.log")):
            with path.open("rb") as file:
                file.seek(seen.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            seen[path] = seen.get(path, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                _print_line(run, path, line, as_json=as_json, prefix=True)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def print_pods(backend: KubernetesBackend, name: str, options: Mapping[str, Any]) -> int:
    """Print the last lines of every pod's log, each under its name; return how many logs there were."""
    found = 0
    for log, lines in backend.logs(name, tail=options["lines"], previous=options["previous"]):
        found += 1
        if lines and not options["as_json"]:
            click.echo(f"==> {log} <==")
        for line in lines:
            click.echo(json.dumps({"log": log, "line": line}) if options["as_json"] else line)
    return found


def follow_pods(backend: KubernetesBackend, name: str, *, tail: int, as_json: bool) -> None:
    """Print what every pod says, with the pod's name, until the run has ended."""

    def show(log: str, line: str) -> None:
        click.echo(json.dumps({"log": log, "line": line}) if as_json else f"{log}: {line}")

    backend.follow(name, show, tail=tail)
