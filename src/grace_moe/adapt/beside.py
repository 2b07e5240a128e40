"""What decides, off those that serve: a module's `main(pipe)` in a process of the lowest priority.

A process and not a thread: planning would hold the interpreter's lock, and steps would wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

_LOWEST_PRIORITY = 19


def start_beside(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start `python -m module`, which calls `run_beside`, and our end of its pipe. It ends when that is closed, or this process ends."""
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-m", module, str(theirs.fileno())]
        return subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL), ours


def run_beside(main: Callable[[Connection], None]) -> None:
    """What a module that is started so does: `main`, until whoever started it ends."""
    if hasattr(os, "sched_setscheduler"):  # ranks that were given a real-time class pass it on
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(_LOWEST_PRIORITY)
    with suppress(EOFError, KeyboardInterrupt):
        main(Connection(int(sys.argv[1])))
