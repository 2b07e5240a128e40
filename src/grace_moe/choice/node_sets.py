"""Sets of nodes as bits: how many nodes joint choice tries exactly, and the tables that minimum cover reads.

A set of nodes serves a token when each of its experts has a replica on a node of the set. For at most `MAX_EXACT_NODES` nodes every
set is one bit of a *feasibility set*: `meets[mask]` has the bit of V set when V intersects the host mask. The sets that serve a token
are the AND of its experts' feasibility sets.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_EXACT_NODES = 8
"""Up to here every set of nodes is tried, 2 ** nodes of them; beyond, sets are found greedily."""
MAX_MASK_NODES = 64
"""Nodes of a mask: bits of an int64, the sign among them. Also 8 groups of 8 nodes, what the search takes."""
_SMALL_NODES = 4
"""Up to here a feasibility set fits 16 bits, and its smallest sets are one look-up."""


class NodeSets(NamedTuple):
    """Bit tables of N nodes: W words of 64 bits hold the 2^N sets in ascending order of size, then of mask."""

    masks: npt.NDArray[np.int64]
    """`[2^N]` the nodes of each set."""
    sizes: npt.NDArray[np.int64]
    """`[2^N]` nodes in each set."""
    meets: npt.NDArray[np.uint64]
    """`[2^N, W]` sets that meet a host mask."""
    level: npt.NDArray[np.uint64]
    """`[N + 1, W]` sets of a size."""
    holds: npt.NDArray[np.uint64]
    """`[N, W]` sets that contain a node."""
    words: npt.NDArray[np.int64]
    """`[N + 1, 2]` first word of the sets of a size, and the one after their last."""
    small: npt.NDArray[np.uint16]
    """`[2^(2^N)]` of every feasibility set the size of its smallest sets, times 256, and the mask of their union, where N is small; else
    empty."""


@cache
def node_sets(nodes: int) -> NodeSets:
    """The tables of so many nodes, at most `MAX_EXACT_NODES`."""
    every = np.arange(1 << nodes)
    masks = every[np.lexsort((every, np.bitwise_count(every)))]
    sizes = np.bitwise_count(masks).astype(np.int64)
    level = _pack_bits(sizes[None] == np.arange(nodes + 1)[:, None])
    holds = _pack_bits(((masks[None] >> np.arange(nodes)[:, None]) & 1) == 1)
    filled = level != 0
    return NodeSets(
        masks=masks,
        sizes=sizes,
        meets=_pack_bits((every[:, None] & masks[None]) != 0),
        level=level,
        holds=holds,
        words=np.stack([filled.argmax(axis=1), filled.shape[1] - filled[:, ::-1].argmax(axis=1)], axis=1),
        small=_every_smallest(nodes, level[:, 0], holds[:, 0]) if nodes <= _SMALL_NODES else np.zeros(0, np.uint16),
    )


def _pack_bits(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """`[..., 2^N]` bool to `[..., W]` uint64, bit 0 first."""
    width = max(64, bits.shape[-1])
    padded = np.zeros((*bits.shape[:-1], width), bool)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def _every_smallest(nodes: int, level: npt.NDArray[np.uint64], holds: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    """`NodeSets.small`, of the first words of `level` and `holds`."""
    feasible = np.arange(1 << (1 << nodes), dtype=np.uint64)
    smallest = np.full(len(feasible), nodes << 8, np.uint16)
    for size in range(nodes, 0, -1):  # a smaller size overrules
        of_size = feasible & level[size]
        union = sum((((of_size & holds[node]) != 0) << np.uint16(node)) for node in range(nodes))
        smallest = np.where(of_size != 0, union | np.uint16(size << 8), smallest).astype(np.uint16)
    return smallest
