"""Completions on the terminal: in the order of the requests, each as it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from grace_moe.errors import printable

if TYPE_CHECKING:
    from grace_moe.runtime.job.events import Said
    from grace_moe.runtime.job.generation import Completion, Request
    from grace_moe.runtime.job.text_stream import TextStream

_SHOWN_OF_TEXT = 60
"""Characters of a prompt that was cut from text: its end is enough to go on from."""


class CompletionPrinter:
    """Prints one request at a time, as the tokens of all come in; those of later requests wait."""

    def __init__(self, requests: Sequence[Request], tokenizer: Any, *, from_text: bool) -> None:
        self._requests, self._tokenizer, self._from_text = requests, tokenizer, from_text
        self._waiting: dict[int, list[Said]] = {request.request_id: [] for request in requests}
        self._next = 0
        self._streamer: TextStream | None = None

    @property
    def in_a_line(self) -> bool:
        """Whether a completion is being printed, and not at its end."""
        return self._streamer is not None

    def add(self, said: Sequence[Said]) -> None:
        """Tokens, in whatever order of requests; prints what can be printed."""
        for one in said:
            self._waiting[one.request_id].append(one)
        while self._next < len(self._requests) and self._waiting[self._requests[self._next].request_id]:
            self._print_waiting(self._requests[self._next])

    def add_whole(self, completions: Sequence[Completion]) -> None:
        """Completions of a run that nobody heard while it was under way."""
        from grace_moe.runtime.job.events import Said

        for completion in completions:
            last = len(completion.tokens) - 1
            self.add([Said(completion.request_id, token, index == last) for index, token in enumerate(completion.tokens)])

    def _print_waiting(self, request: Request) -> None:
        """What is there of the request whose turn it is."""
        if self._streamer is None:
            from grace_moe.runtime.job.text_stream import TextStream

            self._streamer = TextStream(self._tokenizer, lambda text: click.echo(click.style(printable(text), bold=True), nl=False))
            click.echo(printable(self._prompt(request)), nl=False)
        waiting = self._waiting[request.request_id]
        while waiting:
            said = waiting.pop(0)
            self._streamer.add(said.token)
            if said.last:
                self._streamer.end()
                click.echo("\n")
                self._streamer, self._next = None, self._next + 1
                return

    def _prompt(self, request: Request) -> str:
        text: str = self._tokenizer.decode(request.prompt)
        if self._from_text:
            return f"[{request.request_id}] ... {' '.join(text.split())[-_SHOWN_OF_TEXT:]}"
        return text
