"""Every error that a user can cause, with the exit code of its kind.

    GraceError                  1   base; also errors without a kind of their own
    ├── UsageError              2   options that don't go together, values out of range
    ├── InputFileError          3   a file that can't be read as what it should be
    │   ├── TraceError          3
    │   ├── TopologyError       3
    │   └── PlacementError      3
    ├── MismatchError           4   files that are fine alone but don't belong together
    ├── ModelError              5   a model that can't be recorded or run
    ├── MissingExtraError       6   an optional dependency that is not installed
    ├── RankError               7   a rank died, hung or disagreed with the others
    └── VerificationError       8   outputs that should be equal are not

Messages name the file, the field and the mend, in one line.
"""

import unicodedata
from typing import Any

__all__ = [
    "GraceError",
    "InputFileError",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "PlacementError",
    "RankError",
    "TopologyError",
    "TraceError",
    "UsageError",
    "VerificationError",
    "printable",
]

_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them, so that a line reads as another."""


def printable(text: str) -> str:
    """The text with `?` for control characters, lone surrogates and turns of direction; new lines and tabs stay.

    >>> printable("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(c if c in "\n\t" or not (unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS) else "?" for c in text)


class GraceError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)  # so that it crosses processes whatever its constructor takes


class UsageError(GraceError):
    """Options or arguments that are out of range or contradict each other."""

    exit_code = 2


class InputFileError(GraceError):
    """A file that is missing, truncated, of a newer version or out of range."""

    exit_code = 3

    def __init__(self, source: str, field: str, problem: str, mend: str) -> None:
        """`source`: file or description; `field`: what in it; `problem`: what is wrong; `mend`: what to do."""
        super().__init__(f"{_line(source)}: {_brief(field)}: {_brief(problem)}; {mend}")
        self.source = source
        self.field = field


def _restore(kind: type[GraceError], arguments: tuple[Any, ...], state: dict[str, Any]) -> GraceError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


def _line(text: str) -> str:
    """The text on one line: what a file holds must not break a message, nor reach the terminal as control codes."""
    return printable(" ".join(text.split()))


def _brief(text: str) -> str:
    """One line of bounded length, whatever a damaged file put into it."""
    return _line(text if len(text) <= 300 else f"{text[:200]} ... ({len(text)} characters)")


class TraceError(InputFileError):
    """A routing trace that can't be used."""


class TopologyError(InputFileError):
    """A topology that can't be used."""


class PlacementError(InputFileError):
    """A placement that breaks an invariant."""


class MismatchError(GraceError):
    """Trace, topology, placement, model or ranks that don't fit each other."""

    exit_code = 4


class ModelError(GraceError):
    """A model that is not a Mixture-of-Experts, or that the runtime can't reach."""

    exit_code = 5


class MissingExtraError(GraceError):
    """An optional dependency is needed and absent."""

    exit_code = 6

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'grace-moe[{extra}]'")


class RankError(GraceError):
    """A rank died, never joined, or disagreed with the others."""

    exit_code = 7


class VerificationError(GraceError):
    """Two results that must be equal are not."""

    exit_code = 8
