"""The folder through which a job's processes reach each other, so that nothing of it stays, however they end.

Who makes it removes it in the end. Is that process killed, its ranks remove the folder (`worker`); were there none yet, the next
`job_folder` of the same user does: a folder whose lock nobody holds is abandoned.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "grace-moe-job-"
_LOCK = ".grace-moe-job.lock"
"""Tells our folders from others': without it none is removed unless it is empty."""

_BEING_MADE_SECONDS = 5.0
"""So young a folder without a lock may be about to get one."""


@contextmanager
def job_folder() -> Iterator[Path]:
    """A new folder in the temporary directory, for this user alone; gone at the end of the block."""
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name, open(Path(name, _LOCK), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def remove_abandoned() -> None:
    """Remove the folders of this user's jobs that were killed with all their ranks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
                continue
            if not (folder / _LOCK).exists():
                if time.time() - folder.lstat().st_mtime > _BEING_MADE_SECONDS:
                    folder.rmdir()  # its maker was killed before it was locked: there is nothing in it
                continue
            with open(folder / _LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its job runs
                shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a job's folder whose other ranks may still write to it, and end soon."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
