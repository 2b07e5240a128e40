"""Fits the kernels of DeepEP to measured times of one machine and version (docs/cost.md#deepep)."""

from __future__ import annotations

import numpy as np

from grace_moe.cost.exchange import AT_ONCE, FEATURES, LOW_LATENCY, TransportKernel, added_up
from grace_moe.cost.fitting import Floats, balanced, error_of, relative_fit

_ROUNDS = 8


def fit_coefficients(backend: str, columns: Floats, seconds: Floats, nodes: Floats) -> Floats:
    """`[features]` coefficients, none negative: numbers of nodes weigh the same, however many rows each has.

    Args:
        columns: `[rows, features]` of `FEATURES[backend]`, in their order.
        seconds: `[rows]` measured.
        nodes: `[rows]`.
    """
    if backend == LOW_LATENCY:
        return _low_latency(columns, seconds, nodes)
    return _at_once(backend, columns, seconds, nodes)


def predicted(backend: str, columns: Floats, coefficients: Floats) -> Floats:
    """`[rows]` seconds."""
    return added_up(backend, dict(zip(FEATURES[backend], (columns * coefficients).T, strict=True)))


def _low_latency(columns: Floats, seconds: Floats, nodes: Floats) -> Floats:
    """An element inside a node takes at least its share of one between nodes, by the links' bandwidths.

    Tables of several nodes alone hardly tell what it takes: most pairs go between nodes there.
    """
    near, far = (list(FEATURES[LOW_LATENCY]).index(name) for name in ("near_pair_element", "far_pair_element"))
    share = TransportKernel.far_bytes_per_s / TransportKernel.near_bytes_per_s if columns[:, far].any() else 0.0
    tied = columns.copy()
    tied[:, far] += share * columns[:, near]
    found = relative_fit(tied, seconds, balanced(nodes))
    found[near] += share * found[far]
    return found


def _at_once(backend: str, columns: Floats, seconds: Floats, nodes: Floats) -> Floats:
    """Where SMs and links work at once, which of them is the slower in a row depends on the coefficients: both are found in turns.

    The search begins twice: as if all were added up, and with links at their datasheet's bandwidth. They stay at that where no row tells,
    for slower links than those that were measured.
    """
    names, importance = list(FEATURES[backend]), balanced(nodes)
    sms, links = (np.isin(names, part) for part in AT_ONCE[backend])
    summed = relative_fit(columns, seconds, importance)
    by_datasheet = relative_fit(np.where(links, 0.0, columns), seconds, importance)
    by_datasheet[names.index("far_element")] = 1 / TransportKernel.far_bytes_per_s
    best, least = summed, np.inf
    for start in (summed, by_datasheet):
        found = start
        for _ in range(_ROUNDS):
            linked = columns[:, links] @ found[links] > columns[:, sms] @ found[sms]
            slower = np.where(linked[:, None], ~sms, ~links)
            found = relative_fit(np.where(slower, columns, 0.0), seconds, importance)
            if columns[:, links].any() and not linked.any():
                found[links] = by_datasheet[links]
            error = error_of(predicted(backend, columns, found), seconds)
            badness = error.median + 0.1 * error.p95
            if badness < least:
                best, least = found, badness
    return best
