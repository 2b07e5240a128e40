"""Which token a request says next, and when it has said enough: by Transformers' own processors and criteria.

Each request draws from a generator of its own. So it says the same whichever rank and batch it is in, up to the rounding of its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """Divides the logits; 0 = the likeliest token, and nothing is drawn."""
    top_k: int = 0
    """Only the likeliest so many are drawn from; 0 = all."""
    top_p: float = 1.0
    """Only the likeliest that make up this probability are drawn from."""
    seed: int = 0


GREEDY = Sampling()


class Chooser:
    """Chooses the next tokens of some requests."""

    def __init__(self, sampling: Sampling, request_ids: Sequence[int]) -> None:
        self._greedy = sampling.temperature == 0
        self._processors = LogitsProcessorList()
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [_generator(sampling.seed, request_id) for request_id in request_ids]

    def next_tokens(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`[rows]` tokens; rows after the last request get the likeliest.

        Args:
            ids: `[rows, length]` what each row holds so far.
            logits: `[rows, vocabulary]` float32.
        """
        chosen = logits.argmax(dim=-1)
        if self._greedy or not self._generators:
            return chosen
        probabilities = self._processors(ids, logits).softmax(dim=-1).cpu()  # there generators are the same on every machine
        for row, generator in enumerate(self._generators):
            chosen[row] = torch.multinomial(probabilities[row], 1, generator=generator)[0]
        return chosen


def _generator(seed: int, request_id: int) -> torch.Generator:
    """By the seed and the request; torch's own takes 32 bits of a seed."""
    mixed = np.random.SeedSequence([seed % 2**64, request_id % 2**64]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def stopping_criteria(model: Any, tokenizer: Any, *, stop_at_eos: bool, stop_strings: Sequence[str]) -> StoppingCriteriaList:
    """When a request is done: at an end-of-sequence token of the model's, or when its text, prompt included, ends with a stop string.

    Args:
        tokenizer: needed where there are stop strings.
    """
    criteria = StoppingCriteriaList()
    eos = model.generation_config.eos_token_id
    if stop_at_eos and eos is not None:
        criteria.append(EosTokenCriteria(eos))
    if stop_strings:
        criteria.append(StopStringCriteria(tokenizer, list(stop_strings)))
    return criteria
