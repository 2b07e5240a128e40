"""Experts to device groups: flat over devices, or nodes first (docs/method.md#group)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.planning.groups.partition import Groups, size_deviation, utilisation
from grace_moe.planning.paper.sizes import SizeRule, hold_sizes, within_limits
from grace_moe.planning.paper.spectral import spectral_groups
from grace_moe.topology import Topology

NODES_CUT = "the slot limit moved experts between node groups"
NODES_FILLED = "node groups of fewer experts than devices took more"
DEVICES_CUT = "the slot limit moved experts between device groups"


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Device groups of one layer."""

    groups: Groups
    """`[devices]` the experts of each device."""
    deviation: float
    """S: root mean square distance of the sizes from E, the mean size (rounded down) of the device's part."""
    utilisation: float
    """U: affinity inside the groups over all affinity."""
    notes: tuple[str, ...] = ()
    """Where the result is not what the rule alone would give."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Experts that one set of devices shares among its members, clustered but with sizes not yet held."""

    experts: tuple[int, ...]
    """Ascending."""
    affinity: npt.NDArray[np.int64]
    """`[part's experts, part's experts]`."""
    clusters: Groups
    """`[part's devices]` as positions in `experts`."""
    limits: tuple[int, ...]
    """`[part's devices]` most experts that each may hold."""


@dataclass(frozen=True, kw_only=True)
class GroupingDraft:
    """Clusters of one layer before their sizes are held: many ratios can be tried on one clustering."""

    affinity: npt.NDArray[np.int64]
    """`[experts, experts]`."""
    parts: tuple[Part, ...]
    """One a node, in the order of devices; a single one where nodes don't count."""
    notes: tuple[str, ...] = ()

    def hold(self, rule: SizeRule) -> Grouping:
        """Device groups whose sizes follow the rule inside each part, and the slot limits above it."""
        groups: list[tuple[int, ...]] = []
        expected: list[int] = []
        notes = list(self.notes)
        for part in self.parts:
            held, cut = _hold_within(part.affinity, part.clusters, rule, part.limits)
            groups += [tuple(part.experts[position] for position in group) for group in held]
            expected += [len(part.experts) // len(held)] * len(held)
            if cut and DEVICES_CUT not in notes:
                notes.append(DEVICES_CUT)
        return Grouping(
            groups=tuple(groups),
            deviation=size_deviation([len(group) for group in groups], expected),
            utilisation=utilisation(self.affinity, tuple(groups)),
            notes=tuple(notes),
        )


def flat_draft(affinity: npt.NDArray[np.int64], limits: Sequence[int], *, seed: int) -> GroupingDraft:
    """One clustering over all devices: which of them share a node plays no part.

    Args:
        affinity: `[experts, experts]`.
        limits: `[devices]` most experts that each device may hold.

    Raises:
        UsageError: fewer experts than devices.
    """
    _check_enough(len(affinity), len(limits))
    return GroupingDraft(affinity=affinity, parts=(_part(affinity, tuple(range(len(affinity))), limits, seed),))


def hierarchical_draft(affinity: npt.NDArray[np.int64], topology: Topology, limits: Sequence[int], *, seed: int) -> GroupingDraft:
    """Node groups first, fully non-uniform; then a clustering inside each node.

    The largest node group goes to the node with the most devices. Each device needs an expert and has a slot limit,
    so a node group has at least as many experts as its node has devices, and at most as many as their slots.

    Args:
        affinity: `[experts, experts]`.
        limits: `[devices]` most experts that each device may hold; together at least the number of experts.

    Raises:
        UsageError: fewer experts than devices.
    """
    _check_enough(len(affinity), topology.num_devices)
    devices = [list(topology.devices_of_node(node)) for node in range(topology.num_nodes)]
    clusters = _match_sizes(spectral_groups(affinity, len(devices), seed=seed), [len(d) for d in devices])
    fewest = [len(d) for d in devices]
    room = [sum(limits[device] for device in d) for d in devices]
    filled = hold_sizes(affinity, clusters, fewest, [len(affinity)] * len(devices))
    node_groups = hold_sizes(affinity, clusters, fewest, room)
    notes = tuple(note for note, applies in ((NODES_FILLED, filled != clusters), (NODES_CUT, node_groups != filled)) if applies)
    parts = tuple(_part(affinity, experts, [limits[device] for device in d], seed) for experts, d in zip(node_groups, devices, strict=True))
    return GroupingDraft(affinity=affinity, parts=parts, notes=notes)


def _part(affinity: npt.NDArray[np.int64], experts: tuple[int, ...], limits: Sequence[int], seed: int) -> Part:
    own = affinity[np.ix_(experts, experts)]
    return Part(experts=experts, affinity=own, clusters=spectral_groups(own, len(limits), seed=seed), limits=tuple(limits))


def _hold_within(affinity: npt.NDArray[np.int64], clusters: Groups, rule: SizeRule, limits: Sequence[int]) -> tuple[Groups, bool]:
    """The held groups, and whether the limits changed them."""
    held = hold_sizes(affinity, clusters, *within_limits(rule, len(affinity), limits))
    if min(limits) >= rule(len(affinity), len(limits))[1]:
        return held, False
    unlimited = hold_sizes(affinity, clusters, *within_limits(rule, len(affinity), [len(affinity)] * len(limits)))
    return held, held != unlimited


def _match_sizes(clusters: Groups, num_devices: Sequence[int]) -> Groups:
    """The clusters in the order of the nodes: the more devices a node has, the larger its cluster."""
    if len(set(num_devices)) == 1:
        return clusters
    nodes = sorted(range(len(num_devices)), key=lambda node: -num_devices[node])
    of_node = dict(zip(nodes, sorted(clusters, key=lambda cluster: -len(cluster)), strict=True))
    return tuple(of_node[node] for node in range(len(num_devices)))


def _check_enough(num_experts: int, num_devices: int) -> None:
    if num_experts < num_devices:
        raise UsageError(
            f"{num_experts} experts on {num_devices} devices: groups need an expert each; use fewer devices, or method eplb with redundancy"
        )
