"""What the runs of a job gave, and the files that bring it from rank 0 to the process that started the ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save

from grace_moe.files import dump_json, write_atomically
from grace_moe.runtime.job.generation import Completion
from grace_moe.runtime.profiling import Span
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.adapt import AdaptStatus


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, all ranks together."""

    name: str
    dispatch: str
    completions: tuple[Completion, ...]
    """In the order of the job's requests."""
    cross_node_bytes: int
    """Sent between nodes at the collectives, all ranks, dispatch and combine, prefill and decode."""
    intra_node_bytes: int
    """Sent between devices of a node."""
    tokens: int
    """Real tokens that passed each MoE layer, all ranks."""
    passes: int
    """Forward passes of each rank."""
    prefill_seconds: float
    """The slowest rank's."""
    decode_seconds: float
    """The slowest rank's."""
    decode_passes: int
    expert_bytes: tuple[int, ...]
    """Memory of experts, per rank."""
    pass_rows: tuple[int, ...]
    """Rows of each forward pass over all ranks, padding and idle rows included: what `auto` decides by."""
    first_pass: tuple[int, ...]
    """Number of each request's first forward pass, its prefill, in the order of the job's requests."""
    spans: tuple[tuple[Span, ...], ...] = ()
    """Per rank, what a profile timed."""
    adapt: AdaptStatus | None = None
    """How it went at the end, where experts could move."""
    routing: RoutingTrace | None = None
    """What the router chose, where it was kept: requests in the order of the job, so that a replay deals them to the same devices."""

    @property
    def cross_node_bytes_per_token(self) -> float:
        """Bytes between nodes per token, summed over the layers."""
        return self.cross_node_bytes / max(1, self.tokens)

    @property
    def decode_seconds_per_step(self) -> float:
        return self.decode_seconds / max(1, self.decode_passes)


def save_results(results: Sequence[RunResult], folder: Path) -> None:
    """Write results for the process that started the ranks: `results.json`, `logits.safetensors`, and a trace of each run's routing."""
    logits = {f"{i}.{c.request_id}": c.logits for i, r in enumerate(results) for c in r.completions if c.logits is not None}
    write_atomically(folder / "logits.safetensors", save(logits))
    plain = []
    for i, result in enumerate(results):
        if result.routing is not None:
            result.routing.save(_routing_file(folder, i))
        value = {k: v for k, v in vars(result).items() if k not in ("completions", "routing")}
        value["adapt"] = None if result.adapt is None else asdict(result.adapt)
        value["spans"] = [[vars(span) for span in spans] for spans in result.spans]
        value["completions"] = [{"request_id": c.request_id, "tokens": list(c.tokens)} for c in result.completions]
        plain.append(value)
    write_atomically(folder / "results.json", dump_json(plain))


def load_results(folder: Path) -> tuple[RunResult, ...]:
    """Read what `save_results` wrote."""
    logits = load_file(folder / "logits.safetensors")
    results = []
    for i, value in enumerate(json.loads((folder / "results.json").read_text())):
        completions = tuple(
            Completion(request_id=c["request_id"], tokens=tuple(c["tokens"]), logits=logits.get(f"{i}.{c['request_id']}"))
            for c in value.pop("completions")
        )
        spans = tuple(tuple(Span(**span) for span in spans) for spans in value.pop("spans"))
        adapt = _status(value.pop("adapt"))
        tuples = {name: tuple(value[name]) for name in ("expert_bytes", "pass_rows", "first_pass")}
        routing = RoutingTrace.load(_routing_file(folder, i)) if _routing_file(folder, i).exists() else None
        results.append(
            RunResult(
                **{**value, **tuples},
                completions=completions,
                spans=spans,
                routing=routing,
                adapt=adapt,
            )
        )
    return tuple(results)


def _status(value: dict[str, Any] | None) -> AdaptStatus | None:
    if value is None:
        return None
    from grace_moe.adapt import AdaptStatus

    return AdaptStatus(**value)


def _routing_file(folder: Path, run: int) -> Path:
    return folder / f"routing.{run}.safetensors"
