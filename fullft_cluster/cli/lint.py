"""The command that finds traps in batch scripts and manifests."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import click

from fullft_cluster.cli.options import json_option
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.lint import MAX_BYTES, Finding, chosen
from fullft_cluster.lint import lint as find
from fullft_cluster.lint.report import as_json, as_text, rules_json, rules_text

STDIN = "<stdin>"


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--select", multiple=True, metavar="RULE", help="Apply this rule alone; repeat it, or write k8s-*.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave this rule out; repeat it, or write a pattern.")
@click.option("--rules", is_flag=True, help="List every rule with its reason, fix and source.")
@json_option
@click.pass_context
def lint(
    context: click.Context,
    *,
    files: tuple[str, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    rules: bool,
    as_json: bool,
) -> None:
    """Find traps in sbatch scripts and Kubernetes manifests, whoever wrote them; `-` reads stdin.

    Exits 1 when it finds some, 0 when none, 2 when a file cannot be judged. `# lint: ignore RULE` at the end of a line,
    or in a comment above it, ignores a rule there.
    """
    if rules:
        click.echo(rules_json() + "\n" if as_json else rules_text(), nl=False)
        return
    names = chosen(select, ignore)
    if not files:
        raise UsageError(Problem("lint", "no file is given", "Name sbatch scripts or manifests, or `-` for stdin."))
    findings: list[Finding] = []
    problems: list[Problem] = []
    for file in files:
        try:
            findings.extend(find(_read(file), STDIN if file == "-" else file, names))
        except UsageError as error:
            problems.extend(error.problems)
    _show(findings, problems, len(files), as_json)
    context.exit(2 if problems else 1 if findings else 0)


def _show(findings: list[Finding], problems: list[Problem], files: int, json_wanted: bool) -> None:
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if json_wanted:
        click.echo(as_json(findings, problems, files))
        return
    click.echo(as_text(findings), nl=False)
    some = f"{len(findings)} finding" + ("s" if len(findings) != 1 else "")
    click.echo(f"{some} in {files} file" + ("s" if files != 1 else ""), err=True)


def _read(file: str) -> bytes:
    """Return at most one byte more than is judged. Raises UsageError for what cannot be read."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        path = Path(file)
        if stat.S_ISDIR(path.stat().st_mode):
            raise UsageError(Problem(file, "is a directory", "Name the files in it."))
        if stat.S_ISBLK(path.stat().st_mode) or stat.S_ISCHR(path.stat().st_mode):
            raise UsageError(Problem(file, "is a device", "Give a batch script or a manifest."))
        with path.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(Problem(file, f"cannot be read: {error.strerror}", "Check the name.")) from None
    except ValueError as error:  # a NUL byte in the name
        raise UsageError(Problem(repr(file), f"is not a path: {error}")) from None
