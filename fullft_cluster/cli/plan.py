"""The commands plan and calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fullft_cluster.cli.options import (
    find_run,
    inventory_of,
    json_option,
    plan_options,
    print_json,
    resolved_from,
    runs_dir_option,
    say,
)
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.road import to_plan


@click.command()
@plan_options
@json_option
@click.option("--explain", is_flag=True, help="Show each quantity with its formula, source and origin.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write one page with plots there."
)
def plan(as_json: bool, explain: bool, page: Path | None, **options: Any) -> None:
    """Show nodes, GPUs, memory, batch, time, cost and disk for a model, and why."""
    resolved = resolved_from(options)
    planned = to_plan(resolved, inventory_of(resolved.config))
    for note in planned.data_notes:
        say(note)
    if page is not None:
        from fullft_cluster.plan_html import plan_page

        try:
            page.write_text(plan_page(planned.plan), encoding="utf-8")
        except OSError as error:
            raise UsageError(Problem(str(page), f"cannot be written: {error.strerror}", "Give a file.")) from None
        say(f"wrote {page}")
    if as_json:
        click.echo(planned.plan.to_json(), nl=False)
        return
    if page is not None and not explain:
        return
    from fullft_cluster.plan_report import show_plan

    show_plan(planned.plan, explain)


UNUSUAL = 3
"""A ratio of measured and forecast seconds that says more of the run (a debugger, a broken link) than of the
cluster."""


@click.command()
@click.argument("name")
@runs_dir_option
@json_option
def calibrate(name: str, runs_dir: str | None, as_json: bool) -> None:
    """Learn this cluster's speed from a run's measured steps, for the plans to come."""
    from fullft_cluster.measured import calibrate_from

    run = find_run(name, runs_dir)
    measured, path = calibrate_from(run)
    if as_json:
        print_json(measured)
    if not 1 / UNUSUAL <= measured.slowdown <= UNUSUAL:
        say(f"warning: {measured.slowdown:.2f} x the forecast is unusual; is {measured.run} a run as others will be?")
    say(
        f"run {measured.run}: {measured.steps} steps took {measured.slowdown:.2f} x the uncalibrated forecast "
        f"(nine of ten within {measured.spread:.0%}); plans for this cluster use that from now on ({path})"
    )
