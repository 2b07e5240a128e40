"""The command line: a command parses, calls one function, prints."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import NoReturn

import click

from grace_moe.errors import GraceError, printable

COMMANDS = {
    "demo": "grace_moe.cli.demo:demo",
    "record": "grace_moe.cli.record:record",
    "import": "grace_moe.cli.import_:import_command",
    "discover": "grace_moe.cli.discover:discover_command",
    "calibrate": "grace_moe.cli.calibrate:calibrate_command",
    "diagnose": "grace_moe.cli.diagnose:diagnose_command",
    "size": "grace_moe.cli.size:size_command",
    "inspect": "grace_moe.cli.inspect:inspect_file",
    "plan": "grace_moe.cli.plan:plan_command",
    "compare": "grace_moe.cli.compare:compare_command",
    "pareto": "grace_moe.cli.pareto:pareto_command",
    "report": "grace_moe.cli.report:report_command",
    "run": "grace_moe.cli.run:run",
    "simulate": "grace_moe.cli.simulate:simulate_command",
    "export": "grace_moe.cli.export:export_command",
    "front": "grace_moe.cli.front:front",
}
"""Command -> module:function, in the order of `--help`."""
SUMMARIES = {
    "demo": "Record, plan, run on local ranks and verify, on the embedded model.",
    "record": "Record which experts a model's router chooses.",
    "import": "Take what a serving engine recorded, or its slot map.",
    "discover": "Measure the links between ranks, and compare them with what is declared.",
    "calibrate": "Fit the cost model to measured times.",
    "diagnose": "Say whether balancing is worth it, in milliseconds.",
    "size": "Sweep clusters, links, batches and replicas for a model.",
    "inspect": "Show any file of ours.",
    "plan": "Decide which device holds which expert.",
    "compare": "Plan with several methods and measure each on held-out requests.",
    "pareto": "Show what traffic, balance and memory there are to choose from.",
    "report": "Show what a comparison found, as one HTML page.",
    "run": "Run a model with its experts placed by a plan.",
    "simulate": "Serve a day of shifting traffic under policies that re-plan.",
    "export": "Write a plan as vLLM, SGLang or TensorRT-LLM reads it.",
    "front": "Stand before vLLM or SGLang and send each request where its experts are.",
}
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""


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

    The way: record (or import) -> plan -> compare -> run (or export). Start with `grace-moe demo`.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: errors of ours become one line on stderr and the exit code of their kind; an interrupt is 130, as in shells."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal or pipe that knows only ASCII still gets its line
    try:
        code = grace_moe.main(args=arguments, prog_name="grace-moe", standalone_mode=False)
    except GraceError as error:
        _fail(" ".join(str(error).splitlines()), error.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(printable(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except MemoryError:
        _fail("not enough memory; give a smaller file, or a machine with more", GraceError.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own flush at exit is quiet
        _fail(f"output: {error.strerror}; check the disk", GraceError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)  # None of a command that ended, an int of one that exits


def _fail(text: str, exit_code: int) -> NoReturn:
    click.echo(f"error: {printable(text)}", err=True)
    sys.exit(exit_code)
