"""What local ranks tell their launcher while they work: one pipe, a line an event, whoever writes."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_TOKENS_A_LINE = 16
"""A line stays under the 512 bytes that POSIX lets a pipe take as a whole, whichever ranks write at once."""


class Said(NamedTuple):
    """A new token of a request."""

    request_id: int
    token: int
    last: bool
    """Whether the request is done with it."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who wants to know how a job goes."""

    on_run: Callable[[str], None] = lambda _: None
    """Told the name of each run as it begins."""
    on_tokens: Callable[[Sequence[Said]], None] = lambda _: None
    """Told the new tokens of one pass of one rank."""
    on_metrics: Callable[[int], None] = lambda _: None
    """Told the port, where metrics of adaptation are served from now on."""


SILENT = Listener()
"""Nobody wants to know."""


def tell(pipe: int, **event: Any) -> None:
    """Write one event, as a line of JSON."""
    os.write(pipe, json.dumps(event, separators=(",", ":")).encode() + b"\n")


def tell_tokens(pipe: int, said: Sequence[Said]) -> None:
    """Write the new tokens of a pass."""
    for first in range(0, len(said), _TOKENS_A_LINE):
        tell(pipe, tokens=said[first : first + _TOKENS_A_LINE])


class EventReader:
    """The launcher's end of the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._rest = pipe, b""
        self.ended = False
        """Whether nobody can write any more."""

    def read(self, seconds: float) -> list[dict[str, Any]]:
        """The events that are there, waiting so long for the first."""
        if self.ended or not select.select([self._pipe], [], [], seconds)[0]:
            return []
        data = os.read(self._pipe, 2**16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]
