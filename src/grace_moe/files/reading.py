"""Reading regular files only, and no more of them than they hold when they are opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from grace_moe.errors import InputFileError


@contextmanager
def open_regular(path: Path, kind: type[InputFileError]) -> Iterator[tuple[BinaryIO, int]]:
    """The file, open for reading, and its size in bytes. A pipe or device is refused without waiting for it.

    Raises:
        InputFileError: (of the given kind) missing, not to be read, or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise _unreadable(path, kind, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        problem = "Is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise kind(str(path), "file", problem, "check the path")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file, status.st_size
        except OSError as error:
            raise _unreadable(path, kind, error) from error


def read_bytes(path: Path, kind: type[InputFileError], limit: int) -> bytes:
    """All of a regular file.

    Raises:
        InputFileError: (of the given kind) missing, not a regular file, over `limit` bytes, or growing while it is read.
    """
    with open_regular(path, kind) as (file, size):
        if size > limit:
            raise kind(str(path), "size", f"over the limit of {limit} bytes", "is it the right file?")
        data = file.read(size + 1)
    if len(data) > size:
        raise kind(str(path), "size", f"grew beyond {size} bytes while it was read", "wait until it is written, or copy it first")
    return data


def starts_with(path: Path, count: int, kind: type[InputFileError]) -> bytes:
    """The first bytes of a regular file, at most `count`. Raises as `open_regular` does."""
    with open_regular(path, kind) as (file, _):
        return file.read(count)


def _unreadable(path: Path, kind: type[InputFileError], error: OSError | ValueError) -> InputFileError:
    return kind(str(path), "file", str(getattr(error, "strerror", None) or error), "check the path")
