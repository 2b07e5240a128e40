"""Prompts to record: text cut into pieces of equally many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grace_moe.errors import UsageError

_PIECE = 100_000
"""Characters that are tokenised at once: some tokenisers take time that grows with the square of a text's length."""


@dataclass(frozen=True, kw_only=True)
class RecordingSizes:
    """How much to record, whatever runs the model."""

    requests: int
    """At most; text may not make as many."""
    prompt_tokens: int
    """Of every request."""
    new_tokens: int
    """To generate for every request."""
    batch_size: int
    """Requests in one batch."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""


def prompts_from_text(
    texts: Sequence[str], tokenizer: Any, *, tokens_per_prompt: int, max_prompts: int | None = None
) -> list[tuple[int, ...]]:
    """Cut texts into prompts of token ids, dealt round-robin over the texts so that every one is represented.

    Args:
        tokenizer: anything whose `encode(text)` gives token ids.

    Raises:
        UsageError: no text is long enough for one prompt.
    """
    pieces: list[list[tuple[int, ...]]] = []
    for text in texts:
        ids = [i for start in range(0, len(text), _PIECE) for i in tokenizer.encode(text[start : start + _PIECE])]
        whole = len(ids) // tokens_per_prompt
        stride = max(1, whole // max_prompts) if max_prompts else 1
        pieces.append([tuple(ids[i * tokens_per_prompt : (i + 1) * tokens_per_prompt]) for i in range(0, whole, stride)])
    longest = max((len(p) for p in pieces), default=0)
    dealt = [p[i] for i in range(longest) for p in pieces if i < len(p)]
    if not dealt:
        raise UsageError(f"--text: no text has {tokens_per_prompt} tokens; give more text or fewer tokens a request")
    return dealt[:max_prompts]
