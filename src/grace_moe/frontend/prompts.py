"""The tokens of a request to an OpenAI-compatible or SGLang server, as far as its body tells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from grace_moe.errors import ModelError

SHORT_PROMPT = 4
"""Characters that count as a token where there is no tokenizer."""
MOST_CHARACTERS = 100_000
"""Of a prompt that are tokenised: more says nothing new, and takes time that other requests wait for."""


class PromptReader:
    """Finds a request's tokens.

    Args:
        model: folder with the model's `tokenizer.json`; None = only prompts that are token ids tell anything.

    Raises:
        ModelError: there is no such file, or it is damaged.
    """

    def __init__(self, model: Path | None) -> None:
        self._tokenizer = None if model is None else _tokenizer(model / "tokenizer.json")

    def tokens(self, body: dict[str, Any]) -> tuple[list[int], int]:
        """Ids of the prompt's tokens where they can be told, else none; and how many tokens the prompt has, about.

        Prompts of a completion, a chat's messages and SGLang's `text` and `input_ids` are known. A chat's template is left out: it is
        alike for all.
        """
        ids: list[int] = []
        size = 0
        for part in _parts(body):
            if isinstance(part, str):
                own = [] if self._tokenizer is None else self._tokenizer.encode(part[:MOST_CHARACTERS], add_special_tokens=False).ids
                size += len(part) // SHORT_PROMPT if self._tokenizer is None else len(own)
            else:
                own = [i for i in part if type(i) is int and 0 <= i < 2**31]
                size += len(own)
            ids += own
        return ids, max(1, size)


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the folder of the model that is served")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # what the library raises has no narrower kind
        raise ModelError(f"{path}: not a tokenizer ({error}); copy it again") from error


def _parts(body: dict[str, Any]) -> Iterator[str | Sequence[Any]]:
    """Texts and lists of token ids."""
    for field in ("prompt", "text", "input_ids"):
        yield from _texts(body.get(field))
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
        elif isinstance(content, str):
            yield content


def _texts(value: Any) -> Iterator[str | Sequence[Any]]:
    """A text, a list of texts, a list of ids, or a list of such lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        if value and type(value[0]) is int:
            yield value
        else:
            yield from (item for item in value if isinstance(item, str | list))
