"""A recording that outlives an interruption: its finished batches stand in a partial trace, from which it is resumed.

A batch is kept whole or not at all. So a resumed recording makes the same batches as one that was never interrupted, and the same bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grace_moe.errors import MismatchError
from grace_moe.runtime.job.generation import GenerationOptions, Request
from grace_moe.runtime.job.recording import record_trace
from grace_moe.trace import RoutingTrace, concatenate

_SAVED_EVERY_SECONDS = 20.0
"""A trace is written whole, so a long one is not written after every batch; so much is lost at most, and the batch under way."""


@dataclass(frozen=True, kw_only=True)
class KeptRecording:
    """What is recorded, and where its finished part is kept."""

    requests: Sequence[Request]
    options: GenerationOptions
    name: str
    """Of the model."""
    dataset: str
    dtype: str
    device: str
    """Kind of device that runs the model: another rounds otherwise."""
    output: Path
    """Where the whole trace will be."""
    token_ids: bool
    """Whether it says what the tokens are: it holds the text then."""

    @property
    def partial(self) -> Path:
        """Beside the output: a trace that says in its dataset how much of it is there."""
        return self.output.with_name(f"{self.output.stem}.partial{self.output.suffix}")

    def record(self, model: Any, *, resume: bool, progress: Callable[[int], None]) -> RoutingTrace:
        """Record what is not kept yet. The partial trace is written as it grows, and whatever ends this; it goes when all is recorded.

        Raises:
            MismatchError: the partial trace is of other requests, options or another model.
            TraceError: there is none to resume, or it can't be read.
        """
        parts = [self._resumed()] if resume else []
        rest = self.requests[sum(len(set(part.requests.tolist())) for part in parts) :]
        progress((len(self.requests) - len(rest)) * self.options.new_tokens)
        saved_at = 0.0
        try:
            for first in range(0, len(rest), self.options.batch_size):
                batch = rest[first : first + self.options.batch_size]
                trace, _ = record_trace(model, batch, self.options, name=self.name, dataset=self.dataset, progress=progress)
                parts.append(trace if self.token_ids else replace(trace, token_ids=None))
                if time.monotonic() - saved_at > _SAVED_EVERY_SECONDS:
                    self._save(parts)
                    saved_at = time.monotonic()
        except BaseException:  # an interruption, too
            if parts:
                self._save(parts)
            raise
        whole = concatenate(parts)
        return replace(whole, source=f"recording of {self.name}")

    def discard(self) -> None:
        """Remove the partial trace: the whole one is written."""
        self.partial.unlink(missing_ok=True)

    def _save(self, parts: Sequence[RoutingTrace]) -> None:
        there = concatenate(parts)
        requests = len(set(there.requests.tolist()))
        replace(there, dataset=f"{self.dataset} (partial: {requests} of {len(self.requests)} requests, {self._digest})").save(self.partial)

    def _resumed(self) -> RoutingTrace:
        trace = RoutingTrace.load(self.partial)
        if not trace.dataset.endswith(f" requests, {self._digest})"):
            raise MismatchError(
                f"{self.partial}: dataset: {trace.dataset!r} was not recorded by this command; give the model, text and options of then"
            )
        return replace(trace, dataset=self.dataset)

    @property
    def _digest(self) -> str:
        """Of what decides the trace."""
        told = repr((self.name, self.dtype, self.device, self.options, self.requests, self.token_ids))
        return hashlib.sha256(told.encode()).hexdigest()[:12]
