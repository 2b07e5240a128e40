"""Copies and pairs of one layer, counted from the device of each (token, expert) pair. Letters: T tokens, D devices, N nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from grace_moe.evaluation.chunks import chunks
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """What one layer sends and computes, in all tokens."""

    flat: int
    """(token, other device) copies."""
    flat_cross_node: int
    """Those of them to devices on other nodes."""
    pairs: int
    """(token, expert) pairs sent to another device."""
    pairs_cross_node: int
    """(token, expert) pairs sent to another node."""
    pairs_of_device: Ints
    """`[D]` pairs that each device computes."""
    cross_node_links: sparse.csr_array
    """`[D, N]` (token, other node) copies, from each device to each node: its rail peer there takes them in."""
    intra_node_links: sparse.csr_array
    """`[D, local ranks]` copies inside nodes, from each device to each local rank of its node."""
    pass_cross_node: Ints
    """`[passes]` the copies of `cross_node_links` in each forward pass."""
    pass_flat_cross_node: Ints
    """`[passes]` those of `flat_cross_node`."""

    @property
    def cross_node(self) -> int:
        """(token, other node) copies."""
        return int(self.cross_node_links.sum())

    @property
    def intra_node(self) -> int:
        """Device-to-device copies inside nodes."""
        return int(self.intra_node_links.sum())


def count(devices: Ints, source: Ints, topology: Topology, passes: Ints | None = None) -> LayerCounts:
    """Count one layer.

    Args:
        devices: `[T, k]` device of each pair, -1 = none.
        source: `[T]` device on which each token comes in.
        passes: `[T]` forward pass of each token, to count copies by pass too.
    """
    counter = _Counter(topology, 0 if passes is None else int(passes.max(initial=-1)) + 1)
    for part in chunks(len(devices), topology.num_devices):
        counter.add(devices[part], source[part], None if passes is None else passes[part])
    return counter.counts()


class _Counter:
    """Adds up chunks of one layer."""

    def __init__(self, topology: Topology, num_passes: int) -> None:
        self.topology, self.node = topology, topology.node_of_device
        self.first_device_of_node, sizes = topology.devices_of_nodes
        self.local_rank = np.arange(topology.num_devices) - self.first_device_of_node[self.node]
        self.cross_node_links = np.zeros((topology.num_devices, topology.num_nodes), dtype=np.int32)
        self.intra_node_links = np.zeros((topology.num_devices, int(sizes.max())), dtype=np.int32)
        self.pairs_of_device = np.zeros(topology.num_devices, dtype=np.int64)
        self.pass_cross_node = np.zeros(num_passes, dtype=np.int64)
        self.pass_flat_cross_node = np.zeros(num_passes, dtype=np.int64)
        self.flat = self.flat_cross_node = self.pairs = self.pairs_cross_node = 0

    def add(self, devices: Ints, source: Ints, passes: Ints | None) -> None:
        """Count one chunk; see `count`."""
        num_devices, source_node = len(self.node), self.node[source]
        sent = (devices >= 0) & (devices != source[:, None])
        self.pairs += int(sent.sum())
        self.pairs_cross_node += int((sent & (self.node[devices] != source_node[:, None])).sum())
        self.pairs_of_device += np.bincount(devices[devices >= 0], minlength=num_devices)

        rows = np.arange(len(source))
        reached_TD = np.zeros((len(source), num_devices + 1), dtype=bool)
        reached_TD[rows[:, None], devices] = True  # -1 falls into the last column
        reached_TD = reached_TD[:, :num_devices]
        reached_TN = np.logical_or.reduceat(reached_TD, self.first_device_of_node, axis=1)
        reached_TN[rows, source_node] = False
        self._add_nodes(reached_TN, source, passes)
        self._add_devices(reached_TD, source, passes)

    def _add_nodes(self, reached_TN: npt.NDArray[np.bool_], source: Ints, passes: Ints | None) -> None:
        """A copy for each other node that a token reaches."""
        token, node = np.nonzero(reached_TN)
        np.add.at(self.cross_node_links, (source[token], node), 1)
        if passes is not None:
            np.add.at(self.pass_cross_node, passes[token], 1)

    def _add_devices(self, reached_TD: npt.NDArray[np.bool_], source: Ints, passes: Ints | None) -> None:
        """A copy for each device that a token reaches: inside nodes from whoever has it there, and flat from its source."""
        token, device = np.nonzero(reached_TD)
        # Inside each node, the device of the source's local rank hands copies on: the source itself, or the ingress device.
        hands_on = self.topology.rail_peer(source[token], self.node[device])
        to_other = hands_on != device
        np.add.at(self.intra_node_links, (hands_on[to_other], self.local_rank[device[to_other]]), 1)
        self.flat += int((device != source[token]).sum())
        far = self.node[device] != self.node[source[token]]
        self.flat_cross_node += int(far.sum())
        if passes is not None:
            np.add.at(self.pass_flat_cross_node, passes[token[far]], 1)

    def counts(self) -> LayerCounts:
        """What was added up."""
        return LayerCounts(
            flat=self.flat,
            flat_cross_node=self.flat_cross_node,
            pairs=self.pairs,
            pairs_cross_node=self.pairs_cross_node,
            pairs_of_device=self.pairs_of_device,
            cross_node_links=sparse.csr_array(self.cross_node_links, dtype=np.int64),
            intra_node_links=sparse.csr_array(self.intra_node_links, dtype=np.int64),
            pass_cross_node=self.pass_cross_node,
            pass_flat_cross_node=self.pass_flat_cross_node,
        )
