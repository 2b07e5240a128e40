"""Declared against measured: the topology that was found, and where the two contradict each other (docs/discover.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from grace_moe.discover.declared import Declaration, in_words
from grace_moe.discover.evidence import sure_tiers
from grace_moe.discover.measured import Measured
from grace_moe.discover.rank_facts import RankFacts
from grace_moe.discover.tiers import FoundTier, Groups
from grace_moe.topology import Device, Link, Node, Tier, Topology

BAD_LINK = 0.75
"""A pair with less than this share of its tier's bandwidth is worth a word, and a matrix in the file."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """A cluster as it was found."""

    tiers: tuple[FoundTier, ...]
    """Narrow to wide."""
    node: int
    """Which tier is that inside nodes."""
    names: tuple[str, ...]
    """Of the tiers, as the topology file has them."""
    latency_s: tuple[float, ...]
    """Of each tier: the median of its pairs."""
    order: tuple[int, ...]
    """`[devices]` the rank that is each device of the topology, node by node."""
    declarations: tuple[Declaration, ...]
    contradictions: tuple[str, ...]
    """Sentences that somebody should read."""
    notes: tuple[str, ...]


def discover(measured: Measured, declarations: Sequence[Declaration], notes: Sequence[str] = ()) -> Discovery:
    """What was measured, compared with what is declared.

    Args:
        notes: contradictions that are known already.
    """
    tiers, unsure = sure_tiers(measured)
    node = _node_tier(tiers, declarations)
    order = tuple(rank for group in tiers[node].groups for rank in group)
    contradictions = [*notes, *map(_not_enough, unsure), *_against(declarations, tiers, node)]
    if order != tuple(range(len(order))):
        contradictions.append(
            f"ranks are not node by node: ranks {_some(tiers[node].groups[0])} are on one node; the file has the devices in the order that "
            "it needs, so start the ranks so"
        )
    contradictions += _bad_links(measured, tiers)
    told = []
    ranks = len(order)
    if measured.num_measured < ranks * (ranks - 1) // 2:
        told.append(
            f"{measured.num_measured:,} of {ranks * (ranks - 1) // 2:,} pairs measured: all inside machines, one of every two machines"
        )
    if len(tiers) == 1:
        told.append("all links are alike: one node")
    return Discovery(
        tiers=tiers,
        node=node,
        names=_names(tiers, node, declarations),
        latency_s=tuple(float(np.median(measured.latency_s[tier.pairs])) for tier in tiers),
        order=order,
        declarations=tuple(declarations),
        contradictions=tuple(contradictions),
        notes=tuple(told),
    )


def topology_of(found: Discovery, measured: Measured, ranks: Sequence[RankFacts], shared: Mapping[int, float]) -> Topology:
    """The topology file's content; a `bandwidth` matrix is there where a link is bad.

    Args:
        ranks: of each rank, for names and memory.
        shared: by tier, bytes per second that all devices of a node send over it together, where that is less than each alone.
    """
    together = {tier: _rounded(rate) for tier, rate in shared.items()}
    links = [
        Link(bandwidth_bytes_per_s=_rounded(tier.bandwidth), latency_s=_rounded(latency), shared_bytes_per_s=together.get(number))
        for number, (tier, latency) in enumerate(zip(found.tiers, found.latency_s, strict=True))
    ]
    device_of = {rank: device for device, rank in enumerate(found.order)}
    matrix = None
    if _slow_pairs(measured, found.tiers):
        ordered = measured.bandwidth[np.ix_(found.order, found.order)].copy()
        np.fill_diagonal(ordered, np.where(np.isfinite(ordered), ordered, 0).max())  # a device reaches itself no slower than any other
        matrix = tuple(tuple(_rounded(x) for x in row) for row in ordered.tolist())
    return Topology(
        nodes=tuple(
            Node(name=f"node{number}", devices=tuple(Device(name=f"rank{rank}", memory_bytes=ranks[rank].memory_bytes) for rank in group))
            for number, group in enumerate(found.tiers[found.node].groups)
        ),
        intra_node=links[found.node],
        cross_node=links[-1],
        tiers=tuple(
            Tier(name=found.names[number], link=links[number], groups=_by_device(tier.groups, device_of))
            for number, tier in enumerate(found.tiers)
            if found.names[number] not in ("intra_node", "cross_node")
        ),
        bandwidth=matrix,
        discovered=to_dict(found),
        source="discovered",
    )


def to_dict(found: Discovery) -> dict[str, Any]:
    """JSON: tiers with confidence, and what was said."""
    return {
        "tiers": [
            {
                "name": name,
                "groups": [list(group) for group in tier.groups],
                "bandwidth_bytes_per_s": _rounded(tier.bandwidth),
                "latency_s": _rounded(latency),
                "pairs": int(tier.pairs.sum()) // 2,
                "spread": round(tier.spread, 3),
                "agreement": round(tier.agreement, 3),
            }
            for name, tier, latency in zip(found.names, found.tiers, found.latency_s, strict=True)
        ],
        "declared": [{"source": d.source, "groups": [list(group) for group in d.groups]} for d in found.declarations],
        "contradictions": list(found.contradictions),
        "notes": list(found.notes),
    }


def _node_tier(tiers: tuple[FoundTier, ...], declarations: Sequence[Declaration]) -> int:
    """The tier whose groups are declared as nodes; else the one after which bandwidth falls most."""
    declared = {d.groups for d in declarations if d.nodes}
    for number, tier in enumerate(tiers):
        if tier.groups in declared:
            return number
    falls = [narrow.bandwidth / wide.bandwidth for narrow, wide in pairwise(tiers)]
    return int(np.argmax(falls)) if falls else 0


def _names(tiers: tuple[FoundTier, ...], node: int, declarations: Sequence[Declaration]) -> tuple[str, ...]:
    last = len(tiers) - 1
    names = []
    for number, tier in enumerate(tiers):
        said = next((d.source for d in declarations if not d.nodes and d.groups == tier.groups), "").lower()
        word = next((word for word in ("numa", "socket", "nvlink", "domain", "switch") if word in said), None)
        if number == node:
            names.append("intra_node")
        elif number == last:
            names.append("cross_node")
        else:
            names.append(f"{word or ('inside_node' if number < node else 'between_nodes')}_{number}")
    return tuple(names)


def _not_enough(groups: Groups) -> str:
    return f"not enough evidence for {in_words(groups)}: not all streams show it; run it again when links and cores are quiet"


def _against(declarations: Sequence[Declaration], tiers: tuple[FoundTier, ...], node: int) -> list[str]:
    """Declared groups that were not measured."""
    measured = tiers[node].groups
    said = []
    for declared in declarations:
        if any(declared.groups == tier.groups for tier in tiers):
            if declared.nodes and declared.groups != measured:
                nodes = in_words(measured)
                said.append(f"{declared.source} declares {in_words(declared.groups)} as nodes; the file's are {nodes}, as others declare")
        elif declared.nodes:
            said.append(
                f"{_sizes(declared.groups)} devices a node declared ({declared.source}: {in_words(declared.groups)}), "
                f"{_sizes(measured)} measured ({in_words(measured)})"
            )
        elif not all(_nested(declared.groups, tier.groups) for tier in tiers):
            said.append(f"{declared.source} declares {in_words(declared.groups)} that cut through the measured {in_words(measured)}")
    return said


def _nested(some: Groups, others: Groups) -> bool:
    """Whether each group of one lies inside a group of the other, either way."""
    return _inside(some, others) or _inside(others, some)


def _inside(small: Groups, large: Groups) -> bool:
    group_of = {rank: number for number, group in enumerate(large) for rank in group}
    return all(len({group_of[rank] for rank in group}) == 1 for group in small)


def _slow_pairs(measured: Measured, tiers: tuple[FoundTier, ...]) -> list[tuple[int, int, float, int]]:
    """(sender, receiver, share of the tier's bandwidth, tier) of bad links, the worst first."""
    found = []
    for number, tier in enumerate(tiers):
        share = np.where(tier.pairs, measured.bandwidth / tier.bandwidth, np.inf)
        least = min(BAD_LINK, 1 - 3 * tier.spread)  # where all pairs differ, none is bad
        found += [(int(i), int(j), float(share[i, j]), number) for i, j in np.argwhere(share < least)]
    return sorted(found, key=lambda row: row[2])


def _bad_links(measured: Measured, tiers: tuple[FoundTier, ...]) -> list[str]:
    slow = _slow_pairs(measured, tiers)
    said = [
        f"the link from rank {i} to rank {j} has {share:.0%} of what its kind has ({measured.bandwidth[i, j] / 1e9:.3g} of "
        f"{tiers[tier].bandwidth / 1e9:.3g} GB/s)"
        for i, j, share, tier in slow[:_SHOWN]
    ]
    return said + ([f"{len(slow) - _SHOWN} more links are as bad"] if len(slow) > _SHOWN else [])


def _by_device(groups: Groups, device_of: Mapping[int, int]) -> Groups:
    return tuple(sorted(tuple(sorted(device_of[rank] for rank in group)) for group in groups))


def _sizes(groups: Groups) -> str:
    sizes = [len(group) for group in groups]
    return str(sizes[0]) if len(set(sizes)) == 1 else "+".join(map(str, sizes[:_SHOWN])) + ("+..." if len(sizes) > _SHOWN else "")


def _some(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:_SHOWN])) + (", ..." if len(ranks) > _SHOWN else "")


def _rounded(value: float) -> float:
    """To four digits: a person reads it."""
    return float(f"{value:.4g}")
