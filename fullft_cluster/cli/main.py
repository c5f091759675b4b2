"""The command group, and what becomes of errors: their words on stderr, their exit code, no traceback."""

from __future__ import annotations

import os
import sys

import click

from fullft_cluster import __version__
from fullft_cluster.cli.life import cancel, list_runs, logs, resume, status
from fullft_cluster.cli.planning import plan, prepare, render, submit, validate
from fullft_cluster.errors import FullftError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (plan, render, submit, prepare, validate, status, list_runs, logs, cancel, resume):
    cli.add_command(command)


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
