"""SGLang: the tokens of recorded forward passes, as requests (mode per_token, read in sglang 0.5.23)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.notes import counted, several
from grace_moe.engines.recordings.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.recordings.same_passes import repeated_passes
from grace_moe.engines.recordings.torch_dumps import torch_integers
from grace_moe.errors import TraceError

EXTEND, DECODE, MIXED, IDLE, TARGET_VERIFY = 1, 2, 3, 4, 5
"""`ForwardMode` of a recorded pass."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The tokens of one recorded forward pass."""

    ids: npt.NDArray[np.integer[Any]]
    """`[tokens, layers, width]` logical ids, -1 = none."""
    lengths: list[int]
    """Of the pieces of requests in it."""
    mode: int | None
    starts: list[int] | None
    """Position in its request of each piece's first token; None = not recorded."""
    key: Hashable
    """Which pass of its rank it was."""
    digest: str
    """Of all that was recorded."""

    @property
    def requests(self) -> list[RoutedRequest]:
        """Its pieces, with what is known of their phases."""
        ends = np.cumsum(self.lengths).tolist()
        return [
            RoutedRequest(topk_ids=self.ids[end - length : end], prompt_tokens=self._prompt(index, length))
            for index, (end, length) in enumerate(zip(ends, self.lengths, strict=True))
            if length
        ]

    def _prompt(self, piece: int, length: int) -> int | None:
        """Leading tokens of a piece that are prefill; None = not known."""
        if self.mode == EXTEND:
            return length
        if self.mode in (DECODE, IDLE, TARGET_VERIFY):
            return 0
        if self.mode != MIXED or self.starts is None:
            return None
        return 0 if length == 1 and self.starts[piece] > 0 else length


def read_pass(record: dict[str, Any], of_slot: npt.NDArray[np.int64], where: str, index: int) -> Pass:
    """A record of mode per_token, its physical slots as experts. Raises TraceError: not one."""
    physical = torch_integers(record["topk_ids_of_layer"], where, "topk_ids_of_layer", 3)  # [layers, tokens, width]
    layers, tokens, _ = physical.shape
    if layers != len(of_slot) or physical.min(initial=-1) < -1 or physical.max(initial=-1) >= of_slot.shape[1]:
        raise TraceError(
            where,
            "topk_ids_of_layer",
            f"shape {physical.shape} or a slot is outside the map's {of_slot.shape}",
            "record it again (shared experts fused into the routed ones are not supported)",
        )
    logical = np.where(physical < 0, -1, of_slot[np.arange(layers)[:, None, None], physical]).astype(np.int16)
    mode = record.get("forward_mode")
    lengths, starts = _pieces(record, tokens, mode)
    told = (str(record.get("input_ids")), str(record.get("positions")), mode, tokens)
    return Pass(
        ids=logical.transpose(1, 0, 2),
        lengths=lengths,
        mode=mode if type(mode) is int else None,
        starts=starts,
        key=(str(record.get("forward_pass_id", index)), str(record.get("gatherer_key"))),
        digest=hashlib.sha256(repr(told).encode() + logical.tobytes()).hexdigest(),
    )


def trace_of_passes(ranks: Sequence[Sequence[Pass]], hints: Hints, num_experts: int, source: str) -> Imported:
    """A trace of the passes of all ranks; those that ranks recorded alike count once.

    Raises:
        TraceError: no tokens.
    """
    repeated = repeated_passes([{one.key: one.digest for one in rank} for rank in ranks])
    kept = [one for rank, again in zip(ranks, repeated, strict=True) for one in rank if one.key not in again]
    notes = []
    if dropped := sum(map(len, ranks)) - len(kept):
        times = f"{several(dropped, 'pass')} {counted(dropped, 'was', 'were')}"
        notes.append(f"{times} recorded by several ranks alike (tensor parallelism): counted once")
    mixed = [one for one in kept if one.mode == MIXED and one.starts is not None and len(one.ids)]
    if mixed:
        what = f"{several(len(mixed), 'mixed pass')} of {several(sum(len(one.ids) for one in mixed), 'token')}"
        notes.append(f"{what}: a piece of one token that is not its request's first is decode, the rest prefill")
    if any(one.mode == DECODE for one in kept):
        notes.append("SGLang's recorder names no requests: each prefill sequence is one, and so is each decoded token")
    requests = [request for one in kept for request in one.requests]
    imported = trace_of_requests(requests, hints, num_experts=num_experts, source=source)
    return Imported(trace=imported.trace, notes=(*imported.notes, *notes))


def _pieces(record: dict[str, Any], tokens: int, mode: Any) -> tuple[list[int], list[int] | None]:
    """Lengths of the pieces of requests in a pass, and where they start, where positions tell."""
    positions = record.get("positions")
    if not isinstance(positions, list) or len(positions) != tokens or not all(type(p) is int for p in positions):
        positions = None
    lengths = record.get("extend_seq_lens")
    if mode in (DECODE, IDLE):
        lengths = [1] * tokens
    elif not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != tokens:
        lengths = [1] * tokens if positions is None else _lengths_of_positions(positions)
        if positions is None:
            return lengths, None
    if positions is None:
        return lengths, None
    begins = np.cumsum([0, *lengths])[:-1].tolist()
    return lengths, [positions[begin] if begin < tokens else 0 for begin in begins]


def _lengths_of_positions(positions: list[int]) -> list[int]:
    """A request begins wherever the position does not go up by one."""
    tokens = len(positions)
    begins = [0, *(i for i in range(1, tokens) if positions[i] != positions[i - 1] + 1), tokens]
    return [after - before for before, after in pairwise(begins) if after > before]
