"""From the pieces that an engine recorded to one RoutingTrace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.model_config import ModelShape
from grace_moe.errors import TraceError, UsageError
from grace_moe.trace import DECODE, PREFILL, RoutingTrace

COUNT_ROWS = 65_536
"""Rows of a trace made of counts: enough to keep loads to a part in thousands, few enough to plan on at once."""

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the user knows of the model that a dump does not say; None = unknown."""

    num_experts: int | None = None
    top_k: int | None = None
    num_hidden_layers: int | None = None
    layer_ids: tuple[int, ...] | None = None
    """Decoder layers that have experts."""
    model: str = ""
    dataset: str = ""

    @classmethod
    def of(cls, shape: ModelShape, *, model: str = "", dataset: str = "") -> Hints:
        """All that a model's config says."""
        return cls(
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            num_hidden_layers=shape.num_hidden_layers,
            layer_ids=shape.moe_layer_ids,
            model=model,
            dataset=dataset,
        )

    def need(self, name: str, why: str) -> int:
        """One of the numbers. Raises UsageError, with why it is needed, where it is unknown."""
        value = getattr(self, name)
        if value is None:
            raise UsageError(f"{why}; give --model with the model's config.json, or --{name.replace('_', '-')}")
        return int(value)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A trace from an engine, and what its user should know."""

    trace: RoutingTrace
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoutedRequest:
    """The routing of one request, token by token."""

    topk_ids: Ids
    """`[tokens, decoder layers, k]` logical ids, -1 = none."""
    prompt_tokens: int | None = None
    """Leading tokens that are prefill; None = not known."""


def trace_of_requests(requests: Sequence[RoutedRequest], hints: Hints, *, num_experts: int, source: str) -> Imported:
    """One trace of several requests, over the layers that have experts.

    Layers without experts are those that `hints.layer_ids` leaves out; without it, those where no token has a choice or every token
    names expert 0 alone, which is how engines fill them.

    Raises:
        TraceError: no tokens, or requests of different models.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have.
    """
    if not requests or not sum(len(r.topk_ids) for r in requests):
        raise TraceError(source, "tokens", "none", "record some requests")
    shapes = {r.topk_ids.shape[1:] for r in requests}
    if len(shapes) > 1:
        raise TraceError(source, "layers, k", f"requests differ: {sorted(shapes)[:3]}", "import one model at a time")
    for request in requests:
        if request.topk_ids.size and (request.topk_ids.min() < -1 or request.topk_ids.max() >= num_experts):
            bad = int(request.topk_ids.max()) if request.topk_ids.max() >= num_experts else int(request.topk_ids.min())
            raise TraceError(source, "expert ids", f"{bad} is not in 0..{num_experts - 1}", "check the number of experts")
    ids = np.concatenate([r.topk_ids for r in requests]).astype(np.int32)
    used = np.flatnonzero((ids >= 0).any(axis=(0, 1)))
    ids = ids[:, :, : int(used.max(initial=0)) + 1]  # engines pad k
    layers, notes = _layers_with_experts(ids, hints, source)
    lengths = [len(r.topk_ids) for r in requests]
    phase = None
    if all(r.prompt_tokens is not None for r in requests):
        phase = np.concatenate(
            [np.where(np.arange(n) < (r.prompt_tokens or 0), PREFILL, DECODE) for n, r in zip(lengths, requests, strict=True)]
        ).astype(np.uint8)
    trace = RoutingTrace(
        topk_ids=np.ascontiguousarray(ids[:, list(layers)]).astype(np.int16),
        num_experts=num_experts,
        layer_ids=layers,
        model=hints.model,
        dataset=hints.dataset,
        request_ids=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        phase=phase,
        source=source,
    )
    return Imported(trace=trace, notes=notes)


def trace_of_counts(counts: npt.NDArray[np.int64], layer_ids: Sequence[int], hints: Hints, source: str) -> Imported:
    """A trace of `[layers, experts]` counts: each row one expert a layer, as often as it was counted, so that it knows loads alone.

    Counts over `COUNT_ROWS` a layer are scaled down, each layer by itself, to the nearest.

    Raises:
        TraceError: negative counts, or none at all.
    """
    if counts.min(initial=0) < 0 or not counts.sum():
        raise TraceError(source, "counts", "none, or some negative", "record some requests")
    rows = min(COUNT_ROWS, int(counts.sum(axis=1).max()))
    ids = np.full((rows, len(counts), 1), -1, dtype=np.int32)
    for layer, row in enumerate(counts):
        total = int(row.sum())
        if not total:
            continue
        ends = np.round(np.cumsum(row) * (min(rows, total) / total)).astype(np.int64)
        ids[: ends[-1], layer, 0] = np.repeat(np.arange(len(row)), np.diff(ends, prepend=0))
    trace = RoutingTrace(
        topk_ids=ids.astype(np.int16),
        num_experts=counts.shape[1],
        layer_ids=tuple(int(i) for i in layer_ids),
        model=hints.model,
        dataset=hints.dataset,
        counts_only=True,
        source=source,
    )
    return Imported(trace=trace, notes=(COUNTS_NOTE,))


COUNTS_NOTE = "counts only: they tell how often each expert fires, not which fire together, so plans on them are by load alone"


def layers_of_counts(counts: npt.NDArray[np.int64], hints: Hints, source: str) -> Imported:
    """The trace of `[decoder layers, experts]` counts; layers without any, or that `hints.layer_ids` leaves out, have no experts."""
    layers = hints.layer_ids or tuple(int(i) for i in np.flatnonzero(counts.sum(axis=1)))
    _check_layers(layers, len(counts), source)
    return trace_of_counts(counts[list(layers)], layers, hints, source)


def _layers_with_experts(ids: Ids, hints: Hints, source: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if hints.layer_ids is not None:
        _check_layers(hints.layer_ids, ids.shape[1], source)
        return hints.layer_ids, ()
    empty = (ids < 0).all(axis=(0, 2)) | (ids == 0).all(axis=(0, 2))
    layers = tuple(int(i) for i in np.flatnonzero(~empty))
    if not layers:
        raise TraceError(source, "layers", "none has a token that chose an expert", "record a Mixture-of-Experts model")
    note = f"layers {', '.join(map(str, np.flatnonzero(empty)))} never chose: taken as dense (--layers says otherwise)"
    return layers, (note,) if empty.any() else ()


def _check_layers(layers: Sequence[int], rows: int, source: str) -> None:
    if not layers or max(layers) >= rows or min(layers) < 0:
        raise UsageError(
            f"{source}: it has decoder layers 0..{rows - 1}, and the layers with experts are given as {list(layers)[:9]}; check them"
        )
