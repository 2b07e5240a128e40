"""A rank's replica choice as the kernel reads it: one table a phase, of one form for near and for joint choice.

An expert's replica is the one in whose span a draw falls, of spans as wide as the weights of the replicas that may be taken. Near choice
may take all that its table names: this rank's nearest. Joint choice may take those on the nodes that the token visits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice import DRAW_BITS, ChoiceTable, JointChoiceTable, ReplicaChoiceTable
from grace_moe.choice.joint import ORDER_BITS, host_masks
from grace_moe.engines.live.replica_choice import RankChoice

MAX_NODES = 63
"""Nodes of a mask in the kernel; joint choice wants no more."""

Ints: TypeAlias = npt.NDArray[np.int32]
Longs: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class KernelTables:
    """One layer on one rank. P 2 phases (prefill, decode), E experts, R most replicas of any, N nodes, S sets of nodes."""

    slots_PER: Ints
    weights_PER: Ints
    """0 beyond an expert's replicas."""
    nodes_PER: Ints
    hosts_PE: Longs
    """Mask of the nodes that hold each expert."""
    order_S: Longs
    """Size of each set of nodes above its price; empty beyond the nodes that are tried exactly."""
    price_N: Longs
    joint: bool

    def arrays(self) -> tuple[npt.NDArray[np.integer[Any]], ...]:
        """All of them, in order."""
        return self.slots_PER, self.weights_PER, self.nodes_PER, self.hosts_PE, self.order_S, self.price_N


def kernel_tables(choice: RankChoice, node_of_device: Longs, width: int) -> KernelTables:
    """The tables of a choice of arrays, `width` replicas wide (more than any expert has)."""
    phases = [choice.prefill, choice.decode]
    parts = [_candidates(table, choice.rank) for table in phases]
    experts, nodes = len(choice.slot_of_ED), int(node_of_device.max()) + 1
    devices, weights = np.zeros((2, 2, experts, width), dtype=np.int64)
    for phase, (of_phase, weights_of) in enumerate(parts):
        devices[phase, :, : of_phase.shape[1]] = of_phase
        weights[phase, :, : of_phase.shape[1]] = weights_of
    joint = [table for table in phases if isinstance(table, JointChoiceTable)]
    return KernelTables(
        slots_PER=choice.slot_of_ED[np.arange(experts)[:, None], devices].astype(np.int32),
        weights_PER=weights.astype(np.int32),
        nodes_PER=node_of_device[devices].astype(np.int32),
        hosts_PE=np.stack([host_masks(table) for table in joint]) if joint else np.zeros((2, experts), dtype=np.int64),
        order_S=(joint[0].size_S << ORDER_BITS) + joint[0].price_S if joint else np.zeros(0, dtype=np.int64),
        price_N=joint[0].price_N if joint else np.zeros(nodes, dtype=np.int64),
        joint=bool(joint),
    )


def _candidates(table: ChoiceTable, rank: int) -> tuple[Longs, Longs]:
    """`[E, R]` devices and weights: of joint choice all replicas, else the rank's candidates, which share the whole span of a draw."""
    if isinstance(table, JointChoiceTable):
        return table.devices_ER, table.weights_ER
    assert isinstance(table, ReplicaChoiceTable)
    ends = np.pad(table.thresholds[rank], ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1 << DRAW_BITS)))
    return table.devices[rank], np.diff(ends)
