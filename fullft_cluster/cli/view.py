"""How a run is shown: tables and a progress bar on a terminal, plain lines elsewhere. rich is imported late."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import msgspec

from fullft_cluster.rundir import RunDir
from fullft_cluster.status import ENDED, Status
from fullft_cluster.units import duration

POLL_SECONDS = 1.0


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else format(value, text)


def progress_line(now: Status) -> str:
    """Return one line about a run: step | loss | lr | tokens/s | MFU | time left."""
    parts = [f"step {now.step or 0}/{now.total_steps or '?'}"]
    parts += [f"loss {now.loss:.4f}"] if now.loss is not None else []
    parts += [f"lr {now.learning_rate:.2e}"] if now.learning_rate is not None else []
    parts += [f"{now.tokens_per_second:,.0f} tokens/s"] if now.tokens_per_second is not None else []
    parts += [f"MFU {now.mfu:.1%}"] if now.mfu is not None else []
    parts += [f"{duration(now.eta_seconds)} left"] if now.eta_seconds is not None else []
    return " | ".join(parts)


def print_status(now: Status) -> None:
    """Print a run for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{now.name}: {now.state}{f' ({now.reason})' if now.reason else ''}", highlight=False, markup=False)
    facts = {
        "progress": progress_line(now),
        "run directory": now.run_dir,
        "job": now.job_id,
        "nodes": ", ".join(now.nodes),
        "last checkpoint": f"step {now.last_checkpoint_step}" if now.last_checkpoint_step is not None else None,
        "heartbeat": f"{now.heartbeat_age_seconds} s ago" if now.heartbeat_age_seconds is not None else None,
        "export": now.export,
    }
    for label, value in facts.items():
        if value:
            console.print(f"  {label:16}{value}", highlight=False, markup=False, soft_wrap=True)
    if not now.attempts:
        return
    table = Table("attempt", "cause", "decision", "steps", "lost", "nodes", box=None)
    table.add_column("message", no_wrap=True, overflow="ellipsis")  # whole in --json
    for line in now.attempts:
        steps = f"{line.get('first_step') or '-'}..{line.get('last_step') or '-'}"
        cells = (line["attempt"], line["cause"], line["decision"], steps, duration(line.get("seconds_lost") or 0))
        table.add_row(*map(str, cells), " ".join(line.get("nodes", ())), str(line.get("message", "")))
    console.print(table)


def print_runs(runs: Iterable[Status]) -> None:
    """Print a table of runs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "state", "backend", "job", "step", "loss", "attempt", "reason", box=None)
    for run in runs:
        step = f"{run.step or 0}/{run.total_steps or '?'}"
        loss = _number(run.loss, ".4f")
        table.add_row(run.name, run.state, run.backend, run.job_id or "-", step, loss, str(run.attempt), run.reason)
    Console().print(table)


def watch(read: Callable[[], Status], *, as_json: bool) -> Status:
    """Show a run's progress until it ends; one JSON line a change with `as_json`. Returns the last status."""
    if as_json or not sys.stderr.isatty():
        return _watch_lines(read, as_json=as_json)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
    from rich.console import Console

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        now = read()
        task = bar.add_task(now.name, total=now.total_steps, line="")
        while now.state not in ENDED:
            told = f"{now.state}{f' ({now.reason})' if now.reason else ''}, attempt {now.attempt}"
            bar.update(task, completed=now.step or 0, total=now.total_steps, line=f"{told} | {progress_line(now)}")
            time.sleep(POLL_SECONDS)
            now = read()
    return now


def _watch_lines(read: Callable[[], Status], *, as_json: bool) -> Status:
    shown = None
    while True:
        now = read()
        key = (now.state, now.attempt, now.step)
        if key != shown:
            shown = key
            if as_json:
                click.echo(json.dumps(msgspec.to_builtins(now)))
            else:
                click.echo(f"{now.name}: {now.state}, attempt {now.attempt} | {progress_line(now)}", err=True)
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
