"""Paths that commands read and write: an output is tried before the work, and is never an input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from grace_moe.errors import UsageError
from grace_moe.files import check_output


class OutputPath(click.Path):
    """A file that a command writes; every other `click.Path` of a command is read."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


class FileCommand(click.Command):
    """A command that checks its paths before it starts to work."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check, then run.

        Raises:
            UsageError: an output is also an input, in a folder that is an input, or the same as another output.
            GraceError: an output can't be written.
        """
        outputs = list(_paths(self, ctx, of=OutputPath))
        inputs = [given for given in _paths(self, ctx, of=click.Path) if not isinstance(given[0].type, OutputPath)]
        for index, (option, output) in enumerate(outputs):
            check_output(output)
            for other, path in [*inputs, *outputs[:index]]:
                if _would_overwrite(output, path):
                    raise UsageError(f"{option.opts[0]}: {output} would overwrite {path}, given as {_name(other)}; choose another path")
        return super().invoke(ctx)


def _paths(command: click.Command, ctx: click.Context, *, of: type[click.Path]) -> Iterator[tuple[click.Parameter, Path]]:
    """Every path given for the parameters of a type, those of repeated options apart."""
    for parameter in command.params:
        given = ctx.params.get(parameter.name or "")
        if isinstance(parameter.type, of) and given is not None:
            yield from ((parameter, Path(path)) for path in (given if isinstance(given, tuple) else (given,)))


def _name(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(click.get_current_context())


def _would_overwrite(output: Path, path: Path) -> bool:
    """Whether writing `output` would change the file `path`, or a file that is there already in the folder `path`."""
    if os.path.realpath(output) == os.path.realpath(path):
        return not output.exists() or output.is_file()  # a device such as /dev/null is no file that could be lost
    if not output.is_file():
        return False
    if path.is_dir():
        return Path(os.path.realpath(path)) in Path(os.path.realpath(output)).parents
    return path.exists() and os.path.samefile(output, path)
