"""What `grace-moe run` is asked to complete: prompts as they are, as messages of a chat, or cut from text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_moe.cli.options import MAX_TEXT_BYTES, read_text
from grace_moe.errors import ModelError, UsageError

if TYPE_CHECKING:
    from grace_moe.runtime.job.generation import Request

STANDARD_INPUT = Path("-")


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line, from a file or from standard input; blank lines are none. Raises UsageError where there is none."""
    text = _standard_input() if path == STANDARD_INPUT else read_text(path, "--prompts")
    prompts = tuple(line for line in text.splitlines() if line.strip())
    if not prompts:
        raise UsageError(f"--prompts: {'standard input' if path == STANDARD_INPUT else path}: no prompt in it; write one a line")
    return prompts


def _standard_input() -> str:
    """As `read_text` reads a file."""
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"--prompts: standard input: over {MAX_TEXT_BYTES:,} bytes; give fewer prompts at a time")
    return data.decode(errors="replace")


def prompt_requests(prompts: Sequence[str], tokenizer: Any, *, chat: bool) -> tuple[Request, ...]:
    """Each prompt as a request; in a chat, as the user's message in the model's own template.

    Raises:
        UsageError: an empty prompt.
        ModelError: the tokenizer has no chat template.
    """
    from grace_moe.runtime.job.generation import Request

    if chat and not tokenizer.chat_template:
        raise ModelError("tokenizer: chat_template: the model has none; leave --chat out")
    encoded = [tuple(_message(text, tokenizer) if chat else tokenizer.encode(text)) for text in prompts]
    if any(not ids for ids in encoded):
        raise UsageError("--prompt: a prompt is empty; give it some text")
    return tuple(Request(request_id=i, prompt=ids) for i, ids in enumerate(encoded))


def _message(text: str, tokenizer: Any) -> list[int]:
    message = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def text_requests(texts: Sequence[Path], tokenizer: Any, *, prompt_tokens: int, requests: int) -> tuple[Request, ...]:
    """Prompts cut from the texts. Raises UsageError where none is long enough."""
    from grace_moe.runtime.job.recording import requests_from_text

    contents = [read_text(path) for path in texts]
    return tuple(requests_from_text(contents, tokenizer, tokens_per_request=prompt_tokens, max_requests=requests))


def too_long(requests: Sequence[Request], new_tokens: int, config: Any) -> str | None:
    """A warning where a request may outgrow the positions that the model was trained on."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(request.prompt) for request in requests) + new_tokens
    if limit is None or longest <= limit:
        return None
    return (
        f"config.json: max_position_embeddings is {limit:,}, and a prompt with its --new-tokens has up to {longest:,} tokens; "
        "what a model says beyond is often useless"
    )
