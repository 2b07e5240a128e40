"""Progress on stderr: bars on a terminal only, lines everywhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from grace_moe.errors import printable

_TOLD_EVERY_SECONDS = 10.0
"""Between two lines of a count."""


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances the bar by so many steps."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        reach(done, total)

    with progress_of(title, total) as reach:
        yield advance


@contextmanager
def progress_of(title: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that sets the bar to (steps done, steps in all)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is going on: a spinner on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with status_lines() as tell_line:
            yield tell_line
        return
    with console.status("starting") as status:

        def tell(text: str) -> None:
            console.print(Text(printable(text), style="dim"), highlight=False)
            status.update(Text(printable(text)))

        yield tell


@contextmanager
def status_lines() -> Iterator[Callable[[str], None]]:
    """The same as plain lines, wherever it is: text that is printed meanwhile stays whole."""
    yield lambda text: click.echo(f"{printable(text)} ...", err=True)


def tell_metrics(port: int) -> None:
    """Say where metrics can be scraped from now on."""
    click.echo(printable(f"metrics: http://localhost:{port}/metrics"), err=True)


class TokenCount:
    """Says from time to time how many tokens a run has made."""

    def __init__(self, tell: Callable[[str], None], total: int) -> None:
        """`total`: at most so many."""
        self._tell, self._total = tell, total
        self.runs = 0
        """Runs that began."""
        self._name, self._tokens = "", 0
        self._began = self._told = time.monotonic()

    def restart(self, name: str) -> None:
        """A run begins."""
        self.runs += 1
        self._name, self._tokens = name, 0
        self._began = self._told = time.monotonic()

    def add(self, tokens: int, *, quiet: bool = False) -> None:
        """So many more. `quiet`: say nothing now, as a line would stand in the middle of another."""
        self._tokens += tokens
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_SECONDS and not quiet:
            self._told = now
            rate = self._tokens / (now - self._began)
            self._tell(f"{self._name}: {self._tokens:,} of at most {self._total:,} tokens, {rate:.1f} a second")


@contextmanager
def compilation_told() -> Iterator[None]:
    """A line on stderr where numba compiles the planner: its own event says so, which comes only if its cache on disk lacks a kernel."""
    from numba.core.event import Event, Listener, install_listener

    class Teller(Listener):
        told = False

        def on_start(self, event: Event) -> None:
            if not self.told:
                click.echo("compiling the planner, once on this machine ...", err=True)
            self.told = True

        def on_end(self, event: Event) -> None:
            """Planning goes on: the bar tells."""

    with install_listener("numba:compile", Teller()):
        yield
