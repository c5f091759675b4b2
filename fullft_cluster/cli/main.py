"""The command group, and what becomes of errors: their words on stderr, their exit code, no traceback."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

import click

from fullft_cluster import __version__
from fullft_cluster.errors import FullftError

INTERRUPTED = 130

COMMANDS = {
    # name: (module of fullft_cluster.cli, name in it). Imported when called: `plan` is to answer at once.
    "plan": ("plan", "plan"),
    "calibrate": ("plan", "calibrate"),
    "inventory": ("inventory", "inventory"),
    "render": ("planning", "render"),
    "submit": ("planning", "submit"),
    "prepare": ("prepare", "prepare"),
    "validate": ("planning", "validate"),
    "lint": ("lint", "lint"),
    "status": ("life", "status"),
    "list": ("life", "list_runs"),
    "logs": ("life", "logs"),
    "cancel": ("life", "cancel"),
    "resume": ("life", "resume"),
    "delete": ("life", "delete"),
    "checkpoints": ("export", "checkpoints"),
    "export": ("export", "export"),
}


class Commands(click.Group):
    """The group of commands; each one's module is imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"fullft_cluster.cli.{module}"), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fullft-cluster")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")  # read by main(), which catches them
def cli(debug: bool) -> None:
    """From a model size to a finished full fine-tune on a cluster: plan, render, submit, survive."""


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: `eval "$(fullft-cluster completion bash)"`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:  # click knows the three above
        raise FullftError(f"no completion for {shell}")
    click.echo(found(cli, {}, "fullft-cluster", "_FULLFT_CLUSTER_COMPLETE").source())


def main() -> None:
    """Run the command line and exit with its code."""
    debug = "--debug" in sys.argv
    try:
        result = cli.main(standalone_mode=False, prog_name="fullft-cluster")
        code = result if isinstance(result, int) else 0
    except FullftError as error:
        if debug:
            raise
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        if "--json" in sys.argv:  # whoever reads JSON need not read prose
            problems = [vars(problem) for problem in error.problems]
            click.echo(json.dumps({"error": {"exit_code": error.exit_code, "problems": problems}}))
        code = error.exit_code
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except BrokenPipeError:  # `fullft-cluster ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk under stdout, a directory that was deleted under the shell
        if debug:
            raise
        click.echo(f"error: {error.filename or 'output'}: {error.strerror}", err=True)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
