"""The command line: a command parses, calls one function, prints."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from grace_moe.errors import GraceError

COMMANDS = {
    "demo": "grace_moe.cli.demo:demo",
    "record": "grace_moe.cli.record:record",
    "inspect": "grace_moe.cli.inspect:inspect_file",
    "plan": "grace_moe.cli.plan:plan_command",
    "compare": "grace_moe.cli.compare:compare_command",
    "run": "grace_moe.cli.run:run",
}
"""Command -> module:function, in the order of `--help`."""
SUMMARIES = {
    "demo": "Record, plan, run on local ranks and verify, on the embedded model.",
    "record": "Record which experts a model's router chooses.",
    "inspect": "Show any file of ours.",
    "plan": "Decide which device holds which expert.",
    "compare": "Plan with several methods and measure each on held-out requests.",
    "run": "Run a model with its experts placed by a plan.",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is named, so that `--help` and errors come at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing anything."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command that is asked for."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="grace-moe", prog_name="grace-moe")
def grace_moe() -> None:
    """Places the experts of a Mixture-of-Experts model where their tokens are, replicates the hot ones, and runs it.

    The way: record -> plan -> compare -> run. Start with `grace-moe demo`.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: errors of ours become one line on stderr and the exit code of their kind."""
    try:
        return grace_moe.main(args=arguments, prog_name="grace-moe")
    except GraceError as error:
        click.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own flush at exit is quiet
        sys.exit(141)
