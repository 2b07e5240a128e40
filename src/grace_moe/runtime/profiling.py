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
"""Replica choice; tokens to experts; the experts; sums back."""
WAITING = "waiting"
"""What dispatch and combine spend until the last rank has come to the same point of the layer."""


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
class Profiler:
    """Collects this rank's spans. Only a session that is given one pays for it."""

    spans: list[Span] = field(default_factory=list)
    step: int = -1
    began_ns: int = field(default_factory=time.perf_counter_ns)

    @contextmanager
    def timed(self, phase: str, layer_id: int) -> Iterator[dict[str, int]]:
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
    """One of `PHASES`, without waiting; or `WAITING`."""
    mean_ms: float
    """A layer and step, mean over ranks."""
    slowest_rank_ms: float
    """A layer and step, on the rank where it takes longest."""
    share: float
    """Of the time in MoE layers, mean over ranks."""


def phase_times(ranks: Sequence[Sequence[Span]]) -> tuple[PhaseTime, ...]:
    """Summary of every rank's spans, in the order of `PHASES`, then waiting. Ranks' clocks start at a common barrier."""
    total = sum(span.duration_ns for spans in ranks for span in spans)
    of_ranks = _by_phase(ranks)
    times = []
    for phase in (*PHASES, WAITING):
        of_rank = [list(times_of.get(phase, {}).values()) for times_of in of_ranks]
        means = [fmean(durations) / 1e6 if durations else 0.0 for durations in of_rank]
        share = sum(map(sum, of_rank)) / total if total else 0.0
        times.append(PhaseTime(phase=phase, mean_ms=fmean(means) if means else 0.0, slowest_rank_ms=max(means, default=0.0), share=share))
    return tuple(times)


def _by_phase(ranks: Sequence[Sequence[Span]]) -> list[dict[str, dict[tuple[int, int], int]]]:
    """Per rank, nanoseconds of each phase by layer and step: of all its parts, where dispatch and compute took turns."""
    numbered = [_numbered(spans) for spans in ranks]
    last_come: dict[tuple[str, int, int, int], int] = {}
    for parts in numbered:
        for key, span in parts.items():
            last_come[key] = max(last_come.get(key, 0), span.start_ns)
    found: list[dict[str, dict[tuple[int, int], int]]] = []
    for parts in numbered:
        times: dict[str, dict[tuple[int, int], int]] = {}
        for key, span in parts.items():
            at, waited = (span.layer_id, span.step), 0
            if span.phase in ("dispatch", "combine"):
                waited = min(last_come[key] - span.start_ns, span.duration_ns)
                times.setdefault(WAITING, {}).setdefault(at, 0)
                times[WAITING][at] += waited
            times.setdefault(span.phase, {}).setdefault(at, 0)
            times[span.phase][at] += span.duration_ns - waited
        found.append(times)
    return found


def _numbered(spans: Sequence[Span]) -> dict[tuple[str, int, int, int], Span]:
    """Spans by phase, layer, step and how many of these came before: ranks go through the same parts in the same order."""
    seen: dict[tuple[str, int, int], int] = {}
    parts = {}
    for span in spans:
        key = (span.phase, span.layer_id, span.step)
        seen[key] = seen.get(key, 0) + 1
        parts[*key, seen[key]] = span
    return parts


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
