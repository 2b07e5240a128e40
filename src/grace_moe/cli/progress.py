"""Progress on stderr: a bar on a terminal, nothing in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from grace_moe.errors import printable


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
        yield lambda text: console.print(f"{printable(text)} ...", markup=False, highlight=False, soft_wrap=True)
        return
    with console.status("starting") as status:

        def tell(text: str) -> None:
            console.print(Text(printable(text), style="dim"), highlight=False)
            status.update(Text(printable(text)))

        yield tell


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
