"""Python processes that begin with torch and Transformers imported: importing them is most of what a rank in a test does.

One process imports (`python -m tests.warm_python`), and forks another for each command that it is sent. `Popen` is `subprocess.Popen`, but
it has commands `python -m MODULE ...` and `python -c CODE ...` forked there. Such a process is a child of this one as any other is, with
its own environment, standard files and exit code; only its name in /proc is that of the process that imported. Where this is not Linux,
all are started as ever, and so is what sees a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMPORTED = ("torch", "transformers", "transformers.modeling_utils", "grace_moe.runtime.job.local_rank")
"""What `grace_moe.runtime.job.rank_parent` imports."""
PLAIN = subprocess.Popen
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Popen(PLAIN):
    """A process that is forked where it can be, see above."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *more):
        words = [] if isinstance(args, str | bytes) else [os.fspath(word) for word in args]
        environment = dict(os.environ if env is None else env)
        unlike = words[:1] != [sys.executable] or words[1] not in ("-m", "-c") or pass_fds or shell
        if sys.platform != "linux" or unlike or sees_gpus(environment):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *more)
            return
        *pipes, _, _, _, _, _, own_session, _ = more
        stdin, _, _, stdout, _, stderr = pipes
        files = [theirs if theirs != -1 else ours for ours, theirs in enumerate((stdin, stdout, stderr))]
        asked = {"words": words[1:], "folder": str(cwd or Path.cwd()), "environment": environment}
        self.pid = _parent().fork(asked | {"own_session": bool(own_session)}, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def sees_gpus(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment has a GPU. CUDA does not survive a fork."""
    import torch

    return torch.cuda.is_available() and environment.get("CUDA_VISIBLE_DEVICES") != ""


class _Parent:
    """The process that imports."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
        with theirs:
            command = [sys.executable, "-m", "tests.warm_python"]
            self.process = PLAIN(command, cwd=ROOT, stdin=theirs, env=environment, start_new_session=True)
        self.link, self.socket, self.lock = Connection(os.dup(ours.fileno())), ours, threading.Lock()

    def fork(self, asked: dict[str, Any], files: list[int]) -> int:
        """The id of a process with these standard files that runs what was asked."""
        with self.lock, _adopting():
            self.link.send_bytes(json.dumps(asked).encode())
            socket.send_fds(self.socket, [b"."], files)
            return int(self.link.recv_bytes())


@cache
def _parent() -> _Parent:
    """One for all of this process. It ends when this process does."""
    return _Parent()


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _adopting() -> Iterator[None]:
    """Meanwhile, a process whose parent ends becomes a child of this one."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def main() -> None:
    """Import, and fork what is asked for on standard input. In such a process, run it."""
    link = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # what was imported is no garbage: no process needs to look through it
    while True:
        try:
            asked = json.loads(link.recv_bytes())
        except EOFError:
            os._exit(0)
        with socket.socket(fileno=os.dup(link.fileno())) as files_come_by:
            _, files, *_ = socket.recv_fds(files_come_by, 1, 3)
        pid = _fork()
        if not pid:
            break
        link.send_bytes(str(pid).encode())
        for file in files:
            os.close(file)
    link.close()
    _run(asked, files)


def _fork() -> int:
    """The id of a process that goes on from here, 0 in it. Its parent has ended, so that the tests' process adopts it."""
    into, out = os.pipe()
    between = os.fork()
    if between:
        os.close(out)
        with open(into, "rb") as told:
            pid = int(told.read())
        os.waitpid(between, 0)
        return pid
    between = os.getpid()
    pid = os.fork()
    if pid:
        os.write(out, str(pid).encode())
        os._exit(0)
    os.close(into)
    os.close(out)
    while os.getppid() == between:
        time.sleep(0.001)
    return 0


def _run(asked: dict[str, Any], files: list[int]) -> None:
    """What Python does that is started with these words."""
    if asked["own_session"]:
        os.setsid()
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    how, what, *arguments = asked["words"]
    sys.argv = [how if how == "-c" else what, *arguments]
    sys.path[0] = "" if how == "-c" else asked["folder"]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)


if __name__ == "__main__":
    main()
