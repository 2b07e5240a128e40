"""From tokens and their choices, as an engine recorded them, to a trace of what was really recorded."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.layers import choose_layers, numbers_of_rows
from grace_moe.engines.recordings.notes import counted, several
from grace_moe.engines.recordings.signs import BY_CHANCE, signs
from grace_moe.errors import TraceError, UsageError
from grace_moe.trace import RoutingTrace

Ids = npt.NDArray[np.integer[Any]]
UNKNOWN = 255
"""Phase of a token that nobody told."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens as they were recorded, unrecorded rows and layers without experts among them."""

    topk_ids: Ids
    """`[tokens, layers, k]` logical ids, -1 = none."""
    num_experts: int
    source: str
    requests: npt.NDArray[np.int64] | None = None
    """`[tokens]` the request of each; None = not known, each token is its own."""
    phase: npt.NDArray[np.uint8] | None = None
    """`[tokens]` 0 = prefill, 1 = decode, `UNKNOWN`; None = not known of any."""
    layer_ids: tuple[int, ...] | None = None
    """The model's own numbers of the layers, where the dump has them."""

    def keep(self, tokens: npt.NDArray[np.bool_]) -> Tokens:
        """These tokens only."""
        return Tokens(
            topk_ids=self.topk_ids[tokens],
            num_experts=self.num_experts,
            source=self.source,
            requests=None if self.requests is None else self.requests[tokens],
            phase=None if self.phase is None else self.phase[tokens],
            layer_ids=self.layer_ids,
        )


def trace_of_tokens(tokens: Tokens, hints: Hints) -> Imported:
    """A trace of the tokens that were recorded, over the layers that have experts.

    What was not recorded is no data. Left out, and said with numbers: the first `hints.skip_tokens`; tokens without a choice in any
    layer; where k > 1, choices that name expert 0 alone, as filled buffers do; where k = 1, rows of expert 0 at the end of a request
    that are too many for chance; layers without any choice; tokens of unknown phase where most phases are known.

    Raises:
        TraceError: no tokens, or ids out of range.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have, or all tokens are skipped.
    """
    _check(tokens)
    tokens = _skip(tokens, hints)
    ids = _without_filler(tokens.topk_ids)
    numbers = numbers_of_rows(ids.shape[1], hints, tokens.source, tokens.layer_ids)
    seen = (ids > 0).any(axis=(0, 2)) if ids.shape[2] == 1 and hints.layer_ids is None else (ids >= 0).any(axis=(0, 2))
    rows, layer_ids, notes = choose_layers(numbers, np.asarray(seen), hints, tokens.source, own=tokens.layer_ids is not None)
    ids = ids[:, rows]
    kept, left_out = _recorded(ids, tokens)
    tokens = Tokens(topk_ids=ids, num_experts=tokens.num_experts, source=tokens.source, requests=tokens.requests, phase=tokens.phase).keep(
        kept
    )
    tokens, phases = _known_phases(tokens)
    trace = RoutingTrace(
        topk_ids=np.ascontiguousarray(tokens.topk_ids).astype(np.int16),
        num_experts=tokens.num_experts,
        layer_ids=layer_ids,
        model=hints.model,
        dataset=hints.dataset,
        request_ids=None if tokens.requests is None else np.unique(tokens.requests, return_inverse=True)[1].astype(np.int32),
        phase=tokens.phase,
        source=tokens.source,
    )
    return Imported(trace=trace, notes=(*notes, *left_out, *phases, *signs(trace)))


def _check(tokens: Tokens) -> None:
    ids, experts = tokens.topk_ids, tokens.num_experts
    if not len(ids):
        raise TraceError(tokens.source, "tokens", "none", "record some requests")
    if ids.size and (ids.min() < -1 or ids.max() >= experts):
        bad = int(ids.max()) if ids.max() >= experts else int(ids.min())
        raise TraceError(tokens.source, "expert ids", f"{bad} is not in 0..{experts - 1}", "check the number of experts")


def _skip(tokens: Tokens, hints: Hints) -> Tokens:
    total = len(tokens.topk_ids)
    if hints.skip_tokens >= total:
        raise UsageError(
            f"--skip-tokens: {hints.skip_tokens:,} leave nothing of the {several(total, 'token')} of {tokens.source}; skip fewer"
        )
    return tokens.keep(np.arange(total) >= hints.skip_tokens) if hints.skip_tokens else tokens


def _without_filler(ids: Ids) -> Ids:
    """The ids with -1 where a choice of several experts names expert 0 alone: no router chooses it twice, and buffers are made of zeros.
    Columns of k that no token uses are dropped."""
    if ids.shape[2] > 1:
        ids = np.where((ids == 0).all(axis=2, keepdims=True), -1, ids)
    used = np.flatnonzero((ids >= 0).any(axis=(0, 1)))
    return ids[:, :, : int(used.max(initial=0)) + 1]


def _recorded(ids: Ids, tokens: Tokens) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Which tokens were recorded, and what was left out. Raises TraceError where none was."""
    chosen = (ids >= 0).any(axis=(1, 2))
    filled = _zero_tail(ids, tokens) & chosen
    kept = chosen & ~filled
    if not kept.any():
        raise TraceError(tokens.source, "tokens", "none has a choice in any layer with experts", "record some requests")
    if kept.all():
        return kept, ()
    why = []
    if not chosen.all():
        why.append(f"{int((~chosen).sum()):,} that no layer recorded a choice of")
    if filled.any():
        why.append(f"{int(filled.sum()):,} of expert 0 alone, at the ends of requests, as unused rows are filled")
    gone = int((~kept).sum())
    requests = 0 if tokens.requests is None else len(np.setdiff1d(tokens.requests, tokens.requests[kept]))
    also = f"; {several(requests, 'request')} with them" if requests else ""
    return kept, (f"{gone:,} of {several(len(kept), 'token')} {counted(gone, 'is', 'are')} left out: {', '.join(why)}{also}",)


def _zero_tail(ids: Ids, tokens: Tokens) -> npt.NDArray[np.bool_]:
    """`[tokens]` rows at the end of a request (of the file, where requests aren't known) that name expert 0 in every layer, where k = 1
    and chance would hardly make so many."""
    zero = np.asarray((ids <= 0).all(axis=(1, 2)))
    if ids.shape[2] > 1 or not zero.any():
        return np.zeros(len(ids), dtype=bool)
    request = np.zeros(len(ids), dtype=np.int64) if tokens.requests is None else tokens.requests
    order = np.argsort(request, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(request[order])), len(order) - 1)
    start = np.concatenate([[0], ends[:-1] + 1])
    last_other = np.maximum.accumulate(np.where(zero[order], -1, np.arange(len(order))))
    first_of_tail = np.maximum(last_other[ends] + 1, start)
    length = ends + 1 - first_of_tail
    filler = length * ids.shape[1] * log(max(tokens.num_experts, 2)) > -log(BY_CHANCE)
    tail = np.zeros(len(ids), dtype=bool)
    position = np.arange(len(order))
    of_end = np.searchsorted(ends, position)
    tail[order] = (position >= first_of_tail[of_end]) & filler[of_end]
    return tail


def _known_phases(tokens: Tokens) -> tuple[Tokens, tuple[str, ...]]:
    """Tokens whose phases are all known, or none."""
    if tokens.phase is None:
        return tokens, ()
    unknown = tokens.phase == UNKNOWN
    number = int(unknown.sum())
    if not number:
        return tokens, ()
    all_of = several(len(unknown), "token")
    if 2 * number > len(unknown):
        without = Tokens(topk_ids=tokens.topk_ids, num_experts=tokens.num_experts, source=tokens.source, requests=tokens.requests)
        told = () if unknown.all() else (f"phases are left out: {number:,} of {all_of} have none",)
        return without, told
    note = f"{number:,} of {all_of} are left out: whether they are prefill or decode was not recorded, as it was for the others"
    return tokens.keep(~unknown), (note,)
