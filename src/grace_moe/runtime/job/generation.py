"""Generation in lockstep: every rank makes the same number of forward passes, whatever it has to do.

Experts are reached by collectives, so a rank that is done, or never had a request, still joins every pass with a row
that is not a real token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from grace_moe.errors import ModelError
from grace_moe.runtime.job.choosing import GREEDY, Chooser, Sampling, stopping_criteria
from grace_moe.runtime.job.events import Said
from grace_moe.runtime.model.step import Step
from grace_moe.trace import DECODE, PREFILL


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, by its number in the job."""

    request_id: int
    prompt: tuple[int, ...]
    """Token ids, at least one."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the model said to one request."""

    request_id: int
    tokens: tuple[int, ...]
    """New token ids."""
    logits: torch.Tensor | None
    """`[new tokens, vocabulary]` float32, if asked for."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Completions in the order of the requests, and the time that passed."""

    completions: tuple[Completion, ...]
    prefill_seconds: float
    decode_seconds: float
    passes: int
    """Forward passes made."""
    decode_passes: int
    pass_rows: tuple[int, ...]
    """Rows of each forward pass, padding included."""
    batch_passes: tuple[int, ...]
    """Forward passes of each batch."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to generate."""

    new_tokens: int = 16
    """New tokens per request, at most."""
    batch_size: int = 16
    """Requests in one batch on one rank."""
    stop_at_eos: bool = True
    """End a request at the model's end-of-sequence token."""
    keep_logits: bool = False
    """Keep the logits of every new token."""
    sampling: Sampling = GREEDY
    """Greedy where nothing else is said."""
    stop_strings: tuple[str, ...] = ()
    """End a request where its text ends with one of these; they stay in it."""


@torch.no_grad()
def generate(
    model: Any,
    requests: Sequence[Request],
    options: GenerationOptions,
    *,
    num_batches: int | None = None,
    before_step: Callable[[Step], None] | None = None,
    anyone: Callable[[bool], bool] = bool,
    on_tokens: Callable[[Sequence[Said]], None] = lambda _: None,
    tokenizer: Any = None,
) -> GenerationResult:
    """Decoding of this rank's requests, left-padded in batches.

    Args:
        num_batches: batches that every rank makes; a rank with fewer joins with idle rows.
        before_step: told of each forward pass before it runs.
        anyone: whether any rank still has something to do (an all-reduce where there are ranks).
        on_tokens: told of each finished pass's new tokens.
        tokenizer: the model's, needed where there are stop strings.
    """
    _check_vocabulary(model, requests)
    done = stopping_criteria(model, tokenizer, stop_at_eos=options.stop_at_eos, stop_strings=options.stop_strings)
    batches = [list(requests[i : i + options.batch_size]) for i in range(0, len(requests), options.batch_size)]
    batches += [[] for _ in range((num_batches or len(batches)) - len(batches))]
    completions: list[Completion] = []
    prefill_seconds = decode_seconds = 0.0
    pass_rows: list[int] = []
    batch_passes: list[int] = []
    for batch in batches:
        run = _Batch(model, batch, options, done)
        before = len(pass_rows)
        pass_rows.append(run.input_ids.numel())
        began = time.perf_counter()
        run.forward(before_step)
        prefill_seconds += time.perf_counter() - began
        on_tokens(run.said_last)
        began = time.perf_counter()
        for _ in range(options.new_tokens - 1):
            if (options.stop_at_eos or options.stop_strings) and not anyone(any(run.running)):
                break
            pass_rows.append(run.input_ids.numel())
            run.forward(before_step)
            on_tokens(run.said_last)
        decode_seconds += time.perf_counter() - began
        completions += run.completions()
        batch_passes.append(len(pass_rows) - before)
    return GenerationResult(
        completions=tuple(completions),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        passes=len(pass_rows),
        decode_passes=len(pass_rows) - len(batches),
        pass_rows=tuple(pass_rows),
        batch_passes=tuple(batch_passes),
    )


def _check_vocabulary(model: Any, requests: Sequence[Request]) -> None:
    """Raise ModelError where the tokenizer that made the prompts is of a larger vocabulary than the model."""
    size = model.config.get_text_config().vocab_size
    largest = max((token for request in requests for token in request.prompt), default=0)
    if largest >= size:
        raise ModelError(f"model: vocab_size: token {largest} of a prompt is not one of {size}; give the model's own tokenizer files")


class _Batch:
    """One batch on its way: left-padded prompts, their cache, and what was said so far."""

    def __init__(self, model: Any, requests: list[Request], options: GenerationOptions, done: StoppingCriteriaList) -> None:
        device = model.device
        self.model, self.requests, self.options, self.done = model, requests, options, done
        self.chooser = Chooser(options.sampling, [r.request_id for r in requests])
        pad = model.config.get_text_config().pad_token_id or 0
        prompts = [list(r.prompt) for r in requests] or [[pad]]  # an idle rank sends one row that is no token
        width = max(len(p) for p in prompts)
        self.input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        self.ids = self.input_ids
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        if not requests:
            self.mask[:] = 1  # attention needs something to look at; `valid` keeps the row from the experts
        self.request_ids = torch.tensor([r.request_id for r in requests] or [-1])
        self.cache: Any = None
        self.said: list[list[int]] = [[] for _ in requests]
        self.logits: list[list[torch.Tensor]] = [[] for _ in requests]
        self.running = [True for _ in requests]
        self.said_last: list[Said] = []
        """In the last pass."""

    def forward(self, before_step: Callable[[Step], None] | None) -> None:
        """One pass: the prompts the first time, one token a request after that."""
        first = self.cache is None
        if before_step is not None:
            alive = torch.tensor(self.running or [False])
            valid = (self.mask[:, -self.input_ids.shape[1] :].cpu() == 1) & alive[:, None]
            request_ids = self.request_ids[:, None].expand(valid.shape)
            phase = PREFILL if first else DECODE
            token_ids = self.input_ids.cpu().reshape(-1)
            before_step(Step(phase=phase, valid=valid.reshape(-1), request_ids=request_ids.reshape(-1), token_ids=token_ids))
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -self.input_ids.shape[1] :]
        output = self.model(
            input_ids=self.input_ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        logits = output.logits[:, -1].float()
        chosen = self.chooser.next_tokens(self.ids, logits)
        self.ids = torch.cat([self.ids, chosen[:, None]], dim=1)
        done = self.done(self.ids, None).tolist()
        self.said_last = []
        for i, token in enumerate(chosen.tolist()[: len(self.requests)]):
            if self.running[i]:
                self.said[i].append(token)
                if self.options.keep_logits:
                    self.logits[i].append(logits[i].cpu())
                self.running[i] = not done[i]
                last = done[i] or len(self.said[i]) == self.options.new_tokens
                self.said_last.append(Said(self.requests[i].request_id, token, last))
        self.input_ids = chosen[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)

    def completions(self) -> list[Completion]:
        """What was said, in the order of the requests."""
        return [
            Completion(request_id=r.request_id, tokens=tuple(said), logits=torch.stack(logits) if logits else None)
            for r, said, logits in zip(self.requests, self.said, self.logits, strict=True)
        ]
