"""Text of tokens as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TextStreamer


class TextStream(TextStreamer):
    """Transformers' own streamer, which knows when the text of some tokens is final; special tokens have none."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._show = show

    def add(self, token: int) -> None:
        """The next token; shows what is final with it."""
        self.put(torch.tensor([token]))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by Transformers."""
        if text:
            self._show(text)
