"""What the layers of a placement send and compute, by device and tier: all that their time is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PAIRS, FLAT, BETWEEN_NODES, INSIDE_NODES = range(4)
"""Kinds of copies: a (token, expert) pair each; one a device; one a node, to the rail peer there; and from it on inside the node."""
SENT, TAKEN = range(2)


@dataclass(frozen=True, kw_only=True)
class Flows:
    """Counts over all tokens. They add up: those of two halves of a trace are those of the trace."""

    tokens: Floats
    """`[devices]` tokens that come in on each."""
    ports: Floats
    """`[layers, kinds, 2, devices, tiers]` copies that each device sends, and takes in, of each kind and over each tier."""
    per_rate: Floats | None
    """`[layers, kinds, 2, devices]` the same copies, each over its link's bandwidth, where the topology has a matrix."""
    slot_device: Ints
    """`[layers, slots]` device of each expert's replica; layers with fewer slots are filled up with empty ones on device 0."""
    slot_pairs: Floats
    """`[layers, slots]` pairs computed there."""

    @property
    def num_tokens(self) -> float:
        return float(self.tokens.sum())

    @property
    def recorded(self) -> npt.NDArray[np.bool_]:
        """`[layers]` whether anything is computed there."""
        return np.asarray(self.slot_pairs.any(axis=1))

    def pairs_of_device(self, by_slot: Floats | None = None) -> Floats:
        """`[layers, devices]` sums over a device's slots, of pairs unless another value is given."""
        by_slot = self.slot_pairs if by_slot is None else by_slot
        layers, devices = len(by_slot), len(self.tokens)
        cell = np.arange(layers)[:, None] * devices + self.slot_device
        sums: Floats = np.bincount(cell.ravel(), by_slot.ravel(), layers * devices).astype(np.float64)
        return sums.reshape(layers, devices)


def total(parts: Sequence[Flows], weights: Sequence[float]) -> Flows:
    """The weighted sum of flows of one placement."""
    first = parts[0]
    per_rate = None if first.per_rate is None else _sum([part.per_rate for part in parts if part.per_rate is not None], weights)
    return Flows(
        tokens=_sum([part.tokens for part in parts], weights),
        ports=_sum([part.ports for part in parts], weights),
        per_rate=per_rate,
        slot_device=first.slot_device,
        slot_pairs=_sum([part.slot_pairs for part in parts], weights),
    )


def _sum(arrays: Sequence[Floats], weights: Sequence[float]) -> Floats:
    return np.asarray(sum(weight * array for weight, array in zip(weights, arrays, strict=True)))
