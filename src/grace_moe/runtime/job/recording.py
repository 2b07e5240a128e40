"""A trace of what a model's router chooses on some requests, run on one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grace_moe.runtime.job.generation import GenerationOptions, GenerationResult, Request, generate
from grace_moe.runtime.model.recorder import recording
from grace_moe.trace import RoutingTrace, prompts_from_text


def record_trace(
    model: Any,
    requests: Sequence[Request],
    options: GenerationOptions,
    *,
    name: str,
    dataset: str,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[RoutingTrace, GenerationResult]:
    """Generate for `requests` on one process and record it: prefill of every prompt, decode of every new token but the last."""
    with recording(model) as recorder:
        result = generate(model, requests, options, before_step=recorder.begin_step, on_tokens=lambda said: progress(len(said)))
    return recorder.trace(model=name, dataset=dataset), result


def requests_from_text(texts: Sequence[str], tokenizer: Any, *, tokens_per_request: int, max_requests: int | None = None) -> list[Request]:
    """Prompts of equally many tokens as requests (`trace.prompts_from_text`). Raises UsageError: no text is long enough for one."""
    prompts = prompts_from_text(texts, tokenizer, tokens_per_prompt=tokens_per_request, max_prompts=max_requests)
    return [Request(request_id=i, prompt=prompt) for i, prompt in enumerate(prompts)]
