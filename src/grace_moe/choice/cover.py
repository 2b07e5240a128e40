"""The true objective: how many other nodes must receive a token, exactly.

A set of nodes serves a token when each of its experts has a copy on a node of the set. For at most `MAX_NODES` nodes the sets
are bits of a *feasibility set*: `meets[mask]` has bit V set when V intersects the host mask. A token's feasible sets are the
AND of its experts', so a change of one expert's hosts costs k ANDs a token.

With K the size of the smallest feasible set, a source inside some smallest set sends K - 1 copies, any other K; summed over
all sources: N * K - |union of the smallest sets|. This is what joint replica choice will send (`choice.joint`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

MAX_NODES = 8
_SMALL_NODES = 4
"""Up to here a feasibility set fits 16 bits, and its cost is one look-up."""


class CoverTables:
    """Bit tables of N nodes: W words of 64 bits hold 2^N sets, ordered by size."""

    meets: npt.NDArray[np.uint64]
    """`[2^N, W]` sets that meet a host mask."""
    level: npt.NDArray[np.uint64]
    """`[N + 1, W]` sets of a size."""
    holds: npt.NDArray[np.uint64]
    """`[N, W]` sets that contain a node."""
    words: npt.NDArray[np.int64]
    """`[N + 1, 2]` first word of the sets of a size, and the one after their last."""
    small: npt.NDArray[np.uint16]
    """`[2^(2^N)]` size and union (`_smallest`) of every feasibility set where N is small; else empty."""

    def __init__(self, nodes: int) -> None:
        masks = np.arange(1 << nodes)
        order = masks[np.lexsort((masks, np.bitwise_count(masks)))]
        sizes = np.bitwise_count(order)
        self.nodes = nodes
        self.meets = _pack_bits((np.arange(1 << nodes)[:, None] & order[None]) != 0)
        self.level = _pack_bits(sizes[None] == np.arange(nodes + 1)[:, None])
        self.holds = _pack_bits(((order[None] >> np.arange(nodes)[:, None]) & 1) == 1)
        filled = self.level != 0
        self.words = np.stack([filled.argmax(axis=1), filled.shape[1] - filled[:, ::-1].argmax(axis=1)], axis=1)
        self.small = np.zeros(0, np.uint16)
        if nodes <= _SMALL_NODES:
            every = np.arange(1 << (1 << nodes), dtype=np.uint64).reshape(-1, 1)
            self.small = _every_smallest(every, nodes, self.level, self.holds, self.words)


def _pack_bits(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """`[..., 2^N]` bool to `[..., W]` uint64, bit 0 first."""
    width = max(64, bits.shape[-1])
    padded = np.zeros((*bits.shape[:-1], width), bool)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def tokens_of_experts(ids: npt.NDArray[np.int32], experts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where each expert occurs: `members[starts[e] : starts[e + 1]]` are the tokens of expert e.

    Args:
        ids: `[T, k]`, `experts` = none.
    """
    flat = ids.reshape(-1)
    token = np.repeat(np.arange(len(ids)), ids.shape[1])
    order = np.argsort(flat, kind="stable")
    order = order[: int((flat < experts).sum())]
    starts = np.zeros(experts + 1, np.int64)
    np.cumsum(np.bincount(flat[order], minlength=experts), out=starts[1:])
    return starts, token[order].astype(np.int32)


@njit(cache=True, nogil=True)
def _every_smallest(sets: Any, nodes: Any, level: Any, holds: Any, words: Any) -> Any:
    out = np.empty(sets.shape[0], np.uint16)
    ids = np.zeros((1, 1), np.int64)
    scratch, none = np.empty(sets.shape[1], np.uint64), np.zeros(0, np.uint16)
    for i in range(sets.shape[0]):
        out[i] = _smallest(ids, 0, sets[i : i + 1], scratch, none, nodes, level, holds, words)
    return out


@njit(cache=True, nogil=True, inline="always")
def token_cost(ids: Any, token: Any, sets: Any, pins: Any, scratch: Any, small: Any, nodes: Any, level: Any, holds: Any, words: Any) -> Any:
    """Copies summed over all sources, of one token; of a pinned one, N times those from its node.

    Args:
        ids: `[T, k]`; sets: `[E + 1, W]` feasibility set of each expert, all ones for "none"; scratch: `[W]`.
        pins: `[T]` the only source node of each token, -1 = all.
        small, level, holds, words: of `CoverTables`.
    """
    found = _smallest(ids, token, sets, scratch, small, nodes, level, holds, words)
    size, union = np.int64(found >> 8), np.int64(found & 255)
    if pins[token] >= 0:
        return np.uint8(nodes * (size - (union >> pins[token] & 1)))
    sources = 0
    while union:
        union &= union - 1
        sources += 1
    return np.uint8(nodes * size - sources)


@njit(cache=True, nogil=True, inline="always")
def _smallest(ids: Any, token: Any, sets: Any, scratch: Any, small: Any, nodes: Any, level: Any, holds: Any, words: Any) -> Any:
    """Size K of the token's smallest feasible sets, times 256, and the mask of their union."""
    if small.shape[0]:
        feasible = sets[ids[token, 0], 0]
        for j in range(1, ids.shape[1]):
            feasible &= sets[ids[token, j], 0]
        return small[feasible]
    ready = 0  # words of the token's feasibility set that are known; small sets are in the first
    for size in range(1, nodes + 1):
        hit = np.uint64(0)
        for w in range(words[size, 0], words[size, 1]):
            if w == ready:
                scratch[w] = sets[ids[token, 0], w]
                for j in range(1, ids.shape[1]):
                    scratch[w] &= sets[ids[token, j], w]
                ready += 1
            hit |= scratch[w] & level[size, w]
        if hit:
            union = 0
            for n in range(nodes):
                for w in range(words[size, 0], words[size, 1]):
                    if scratch[w] & level[size, w] & holds[n, w]:
                        union |= 1 << n
                        break
            return np.uint16(size << 8 | union)
    return np.uint16(nodes << 8)
