"""Where a MoE layer's time goes: spans of its phases on every rank, as a summary and as a Chrome trace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

PHASES = ("routing", "dispatch", "compute", "combine")
"""Replica choice; tokens to experts, waiting for other ranks included; the experts; sums back, waiting included."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One phase of one layer in one forward pass."""

    phase: str
    """One of `PHASES`."""
    layer_id: int
    step: int
    """Forward pass, from 0."""
    start_ns: int
    """Since the run began on this rank."""
    duration_ns: int
    counts: dict[str, int]
    """dispatch, combine: `cross_node_bytes` and `intra_node_bytes` sent; compute: `tokens` received, `pairs` computed, `active_experts`."""


@dataclass(kw_only=True)
class Monitor:
    """Collects this rank's spans. Only a session that is given one pays for it."""

    spans: list[Span] = field(default_factory=list)
    step: int = -1
    began_ns: int = field(default_factory=time.perf_counter_ns)

    @contextmanager
    def span(self, phase: str, layer_id: int) -> Iterator[dict[str, int]]:
        """Time a phase; put what it counted into the dictionary. Waits for the accelerator at both ends."""
        counts: dict[str, int] = {}
        _wait_for_device()
        start = time.perf_counter_ns()
        yield counts
        _wait_for_device()
        end = time.perf_counter_ns()
        self.spans.append(
            Span(phase=phase, layer_id=layer_id, step=self.step, start_ns=start - self.began_ns, duration_ns=end - start, counts=counts)
        )


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """One phase over the layers and steps of a run."""

    phase: str
    mean_ms: float
    """A layer and step, mean over ranks."""
    slowest_rank_ms: float
    """A layer and step, on the rank where it takes longest."""
    share: float
    """Of the time in MoE layers, mean over ranks."""


def phase_times(ranks: Sequence[Sequence[Span]]) -> tuple[PhaseTime, ...]:
    """Summary of every rank's spans, in the order of `PHASES`."""
    total = sum(span.duration_ns for spans in ranks for span in spans)
    times = []
    for phase in PHASES:
        of_rank = [_by_layer_and_step(spans, phase) for spans in ranks]
        means = [fmean(durations) / 1e6 if durations else 0.0 for durations in of_rank]
        share = sum(map(sum, of_rank)) / total if total else 0.0
        times.append(PhaseTime(phase=phase, mean_ms=fmean(means) if means else 0.0, slowest_rank_ms=max(means, default=0.0), share=share))
    return tuple(times)


def _by_layer_and_step(spans: Sequence[Span], phase: str) -> list[int]:
    """Nanoseconds of a phase in each layer and step: of all its parts, where dispatch and compute took turns."""
    parts: dict[tuple[int, int], int] = {}
    for span in spans:
        if span.phase == phase:
            parts[span.layer_id, span.step] = parts.get((span.layer_id, span.step), 0) + span.duration_ns
    return list(parts.values())


def chrome_trace(runs: dict[str, Sequence[Sequence[Span]]]) -> str:
    """JSON for chrome://tracing or Perfetto: a process a run, a thread a rank. Clocks of ranks start at a common barrier."""
    events: list[dict[str, Any]] = []
    for pid, (name, ranks) in enumerate(runs.items()):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        for rank, spans in enumerate(ranks):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": rank, "args": {"name": f"rank {rank}"}})
            events.extend(
                {
                    "ph": "X",
                    "name": span.phase,
                    "cat": f"layer {span.layer_id}",
                    "pid": pid,
                    "tid": rank,
                    "ts": span.start_ns / 1e3,
                    "dur": span.duration_ns / 1e3,
                    "args": {"layer": span.layer_id, "step": span.step, **span.counts},
                }
                for span in spans
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
