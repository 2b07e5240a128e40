"""The door for what stands in a model's folder: whatever libraries raise about it becomes one line of ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace_moe.errors import GraceError, InputFileError, ModelError, printable
from grace_moe.files import read_json
from grace_moe.runtime.dispatch.collectives import is_communication_error

_LONGEST = 300


@contextmanager
def reading(path: str, part: str, mend: str) -> Iterator[None]:
    """Raise ModelError for any failure inside the block: a folder holds what its author put there, and libraries raise what they like.

    A lost rank is no fault of the folder: errors of communication pass.

    Args:
        part: of the folder, such as `config.json`.
        mend: what the user can do.
    """
    try:
        yield
    except GraceError:
        raise
    except Exception as error:
        if is_communication_error(error):
            raise
        if is_fault(error):
            mend = f"{mend}; if the files are whole, this is a fault of grace-moe's or Transformers': report it, with the command"
        raise ModelError(f"{path}: {part}: can't be read ({_said(error)}); {mend}") from error


def read_model_json(path: Path) -> Any:
    """A JSON file of the folder, within the bounds of our own files. Raises ModelError."""
    try:
        return read_json(path, InputFileError, finite=False)  # some configurations have `Infinity`
    except InputFileError as error:
        raise ModelError(str(error)) from error


def is_fault(error: BaseException | None) -> bool:
    """Whether code is more likely wrong than the file it read."""
    return isinstance(error, (LookupError, AttributeError, TypeError, AssertionError, NotImplementedError))


def _said(error: Exception) -> str:
    """The first line of an error, printable and of bounded length: it may quote the file. Of a fault, the kind and the place too."""
    lines = str(error).splitlines()
    text = lines[0][:_LONGEST] if lines else type(error).__name__
    if is_fault(error):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {text}, at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
    return printable(text)
