"""Writing whole: readers see the old file or the new one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path

from grace_moe.errors import GraceError

_MARK = ".grace-moe-tmp"
"""Ends the name of a temporary file of ours."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename: readers see the old file or the new one, whole.

    A link is followed; a pipe or device (`/dev/stdout`, `/dev/null`) is written into, never replaced. A file that is there keeps its
    mode, a new one has what the umask leaves. What killed writes to the same path left behind is removed.

    Raises:
        GraceError: the folder is missing, or the disk is full; nothing is left behind.
    """
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        _remove_abandoned(target)
        _replace(target, data)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise _unwritable(path, error) from error


def check_output(path: Path) -> None:
    """Find out before the work whether `path` can be written, without touching it.

    Raises:
        GraceError: its folder is missing or can't be written to, or it is a folder itself.
    """
    try:
        if _is_stream(path):
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        descriptor, temporary = _create(target)
        os.close(descriptor)
        temporary.unlink()
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _replace(target: Path, data: bytes) -> None:
    descriptor, temporary = _create(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode) & 0o777)
            os.fsync(descriptor)
            os.replace(temporary, target)  # while the lock is held: else another write could take it for abandoned
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(target: Path) -> tuple[int, Path]:
    """A new temporary file for `target`: its descriptor, which holds a lock while the writer lives, and its path."""
    while True:
        temporary = target.parent / f"{_prefix(target)}{secrets.token_hex(4)}{_MARK}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:  # else another write took it for abandoned before it was locked
            return descriptor, temporary
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the file is now ours alone. A file system without locks says no: then nothing is ever taken for abandoned."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of `target` whose writer is gone: the lock of a process ends with it."""
    prefix = _prefix(target)
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(_MARK)]
    for name in names:
        try:
            descriptor = os.open(target.parent / name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone already, or another user's
        try:
            if _lock(descriptor, wait=False):
                (target.parent / name).unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _prefix(target: Path) -> str:
    """What the names of a target's temporary files begin with; a name too long to be added to is named by its digest."""
    long = len(os.fsencode(target.name)) > 200
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16] if long else target.name}."


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _unwritable(path: Path, error: OSError | ValueError) -> GraceError:
    problem = getattr(error, "strerror", None) or error
    return GraceError(f"{path}: can't be written: {problem}; check the folder and the disk")
