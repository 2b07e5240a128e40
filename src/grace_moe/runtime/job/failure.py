"""What the exit codes and last words of local ranks say: which rank failed, and with which error of ours."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from grace_moe.errors import GraceError, RankError

_SAID = "error: "
"""How a rank begins the line of an error of ours."""
_TRACEBACK = "Traceback (most recent call last)"


def error_of_ranks(codes: Sequence[int | None], folder: Path) -> GraceError:
    """The error of the rank that explains the rest: one with an error of ours that is not about another rank, else one that was killed,
    else one that failed unexpectedly, else one that lost another.

    Args:
        codes: of each rank's process; None = still running.
        folder: where each rank's log is.
    """
    rank = min((r for r, code in enumerate(codes) if code), key=lambda r: _weight(codes[r] or 0, _last_line(log_of(folder, r))))
    code, log = codes[rank] or 0, log_of(folder, rank)
    said = _last_line(log)
    kind = _kinds().get(code)
    kept = _kept(log, f"rank{rank}", always=code < 0 or not said.startswith(_SAID))
    if kind is not None and kind is not RankError and said.startswith(_SAID):
        return kind.__new__(kind, said.removeprefix(_SAID) + kept)  # whatever its constructor takes: the message is made
    reason = _signal_in_words(code) if code < 0 else said.removeprefix(_SAID)
    return RankError(f"rank {rank} of {len(codes)} stopped: {reason}; the other ranks were stopped{kept}")


def error_of_parent(code: int, folder: Path) -> RankError:
    """The error of ranks that never were, or were lost with the process that started them."""
    log = parent_log(folder)
    reason = _signal_in_words(code) if code < 0 else _last_line(log)
    return RankError(f"the ranks could not be started: {reason}{_kept(log, 'ranks', always=True)}")


def log_of(folder: Path, rank: int) -> Path:
    """Where a rank's log is, in its job's folder."""
    return folder / f"rank{rank}.log"


def parent_log(folder: Path) -> Path:
    """Where the log of the process that starts the ranks is."""
    return folder / "ranks.log"


def _signal_in_words(code: int) -> str:
    return "killed by SIGKILL; out of memory?" if -code == signal.SIGKILL else f"killed by signal {-code}"


def _weight(code: int, said: str) -> int:
    """Less = explains more. A rank aborts now and then when another is gone."""
    if code > 0 and code != RankError.exit_code and said.startswith(_SAID):
        return 0
    if code < 0:
        return 3 if -code == signal.SIGABRT else 1
    return 4 if code == RankError.exit_code else 2


def _kinds() -> dict[int, type[GraceError]]:
    """Exit code -> the most general error that has it."""
    kinds: dict[int, type[GraceError]] = {}
    for kind in _descendants(GraceError):
        kinds.setdefault(kind.exit_code, kind)
    return kinds


def _descendants(kind: type[GraceError]) -> Iterator[type[GraceError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _descendants(below)


def _last_line(log: Path) -> str:
    """The last error of ours, else the last line: torch's threads may have written after it."""
    lines = [line for line in _text(log).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(_SAID)]
    return (ours or lines or ["it said nothing"])[-1]


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _kept(log: Path, name: str, *, always: bool) -> str:
    """Words for the end of an error: where there is a copy of the log that outlives the folder. A traceback is worth a report."""
    text = _text(log)
    if not text or not (always or _TRACEBACK in text):
        return ""
    with tempfile.NamedTemporaryFile("w", prefix=f"grace-moe-{name}-", suffix=".log", delete=False) as kept:
        kept.write(text)
    return f"; all that it said: {kept.name}"
