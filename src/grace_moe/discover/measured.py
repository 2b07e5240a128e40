"""What was measured between ranks, and what it is not sure of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One direction of a pair, measured once."""

    sender: int
    receiver: int
    rates: tuple[float, ...]
    """Bytes per second of each stream; two or more."""
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of every pair of ranks."""

    bandwidth: Floats
    """`[ranks, ranks]` bytes per second from each (row) to each, by the fastest stream; infinite on the diagonal."""
    again: Floats
    """The same by the second fastest: what has been seen twice."""
    latency_s: Floats
    """`[ranks, ranks]` of a message without content, each way: half of there and back."""
    num_measured: int
    """Pairs that were measured; the others have the numbers of another pair of the same two machines."""


def pairs_to_measure(machines: list[str], most: int) -> list[tuple[int, int]]:
    """All pairs of ranks, up to `most`; of more, all inside machines, and one of every two machines, local ranks taking turns.

    >>> pairs_to_measure(["a", "a", "b", "b"], 5)
    [(0, 1), (0, 2), (2, 3)]
    """
    ranks = len(machines)
    if ranks * (ranks - 1) // 2 <= most:
        return [(i, j) for i in range(ranks) for j in range(i + 1, ranks)]
    members: dict[str, list[int]] = {}
    for rank, machine in enumerate(machines):
        members.setdefault(machine, []).append(rank)
    groups = list(members.values())
    inside = [(i, j) for group in groups for at, i in enumerate(group) for j in group[at + 1 :]]
    across = []
    for a, group in enumerate(groups):
        for b in range(a + 1, len(groups)):
            turn = b - a - 1
            across.append((group[turn % len(group)], groups[b][turn % len(groups[b])]))
    return sorted((min(pair), max(pair)) for pair in inside + across)


def rounds_of(pairs: list[tuple[int, int]], machines: list[str]) -> list[list[tuple[int, int]]]:
    """The pairs in rounds: those of one round are on machines of their own, so that none disturbs another.

    >>> rounds_of([(0, 1), (0, 2), (2, 3)], ["a", "a", "b", "b"])
    [[(0, 1), (2, 3)], [(0, 2)]]
    """
    rounds: list[list[tuple[int, int]]] = []
    busy: list[set[str]] = []
    for pair in pairs:
        both = {machines[rank] for rank in pair}
        at = next((number for number, taken in enumerate(busy) if not both & taken), len(rounds))
        if at == len(rounds):
            rounds.append([])
            busy.append(set())
        rounds[at].append(pair)
        busy[at] |= both
    return rounds


def gathered(samples: Iterable[Sample], machines: list[str]) -> Measured:
    """All samples as matrices: what disturbs a stream makes it slower, so the fastest streams tell the link.

    Args:
        machines: of each rank, its machine.
    """
    rates: dict[tuple[int, int], list[float]] = {}
    latency: dict[tuple[int, int], float] = {}
    for sample in samples:
        link = sample.sender, sample.receiver
        rates[link] = sorted((*rates.get(link, ()), *sample.rates), reverse=True)[:2]
        latency[link] = min(latency.get(link, sample.latency_s), sample.latency_s)
    bandwidth, again = (filled({link: some[place] for link, some in rates.items()}, machines) for place in range(2))
    each_way = filled(latency, machines)
    each_way = (each_way + each_way.T) / 2
    for matrix, own in ((bandwidth, np.inf), (again, np.inf), (each_way, 0.0)):
        np.fill_diagonal(matrix, own)
    return Measured(bandwidth=bandwidth, again=again, latency_s=each_way, num_measured=len(rates) // 2)


def filled(values: dict[tuple[int, int], float], machines: list[str]) -> Floats:
    """`[ranks, ranks]` of values by (sender, receiver); a pair without one has that of another pair of its two machines."""
    ranks = len(machines)
    matrix = np.full((ranks, ranks), np.nan)
    of_machines: dict[tuple[str, str], float] = {}
    for (sender, receiver), value in values.items():
        matrix[sender, receiver] = value
        of_machines.setdefault((machines[sender], machines[receiver]), value)
    for sender, receiver in np.argwhere(np.isnan(matrix)).tolist():
        if sender != receiver:
            matrix[sender, receiver] = of_machines[machines[sender], machines[receiver]]
    return matrix
