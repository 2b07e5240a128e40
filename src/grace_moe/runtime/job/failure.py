"""What the exit codes and last words of local ranks say: which rank failed, and with which error of ours."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from grace_moe.errors import GraceError, RankError

_SAID = "error: "
"""How a rank begins the line of an error of ours."""


def error_of_ranks(codes: Sequence[int | None], folder: Path) -> GraceError:
    """The error of the rank that explains the rest: one with an error of ours that is not about another rank, else one that was killed,
    else one that failed unexpectedly, else one that lost another.

    Args:
        codes: of each rank's process; None = still running.
        folder: where each rank's log is.
    """
    rank = min((r for r, code in enumerate(codes) if code), key=lambda r: _weight(codes[r] or 0, _last_line(folder, r)))
    code, said = codes[rank] or 0, _last_line(folder, rank)
    kind = _kinds().get(code)
    if kind is not None and kind is not RankError and said.startswith(_SAID):
        return kind.__new__(kind, said.removeprefix(_SAID))  # whatever its constructor takes: the message is made
    where = f"rank {rank} of {len(codes)} stopped"
    if code < 0:
        reason = "killed by SIGKILL; out of memory?" if -code == signal.SIGKILL else f"killed by signal {-code}"
        return RankError(f"{where}: {reason}; the other ranks were stopped")
    if code == RankError.exit_code:
        return RankError(f"{where}: {said.removeprefix(_SAID)}; the other ranks were stopped")
    return RankError(f"{where}: {said}; the other ranks were stopped; all that it said: {_keep_log(folder, rank)}")


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


def _last_line(folder: Path, rank: int) -> str:
    """The last error of ours, else the last line: torch's threads may have written after it."""
    lines = [line for line in _log(folder, rank).read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(_SAID)]
    return (ours or lines or ["it said nothing"])[-1]


def _keep_log(folder: Path, rank: int) -> Path:
    """A copy of a rank's log that outlives the folder: an unexpected error is worth a report."""
    with tempfile.NamedTemporaryFile(prefix=f"grace-moe-rank{rank}-", suffix=".log", delete=False) as kept:
        kept.write(_log(folder, rank).read_bytes())
    return Path(kept.name)


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"
