"""Modelled time of one MoE layer under hierarchical dispatch: alpha-beta links and expert compute.

Replay's counts are scaled to a batch. Every step ends when its slowest device does:

- dispatch = cross-node stage + intra-node stage. A stage takes `latency_s` (0 where nothing is sent), and then as long as the device
  that sends, or takes in, for longest; a device sends and takes in at once, its copies one after the other:
  `row_bytes / bandwidth` each, by the topology's matrix where it has one, else by its kind of link;
- combine = the same copies back, so the same time;
- compute = pairs over rate, mean over devices; idle = what the slowest device adds to that mean.

Nothing overlaps, and the copies of one link share it without contention in between: a model to compare placements by, not a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from grace_moe.errors import MismatchError
from grace_moe.topology import Link, Topology

BATCH_TOKENS = 32_768
"""Tokens of a batch over all devices: the paper's prefill of (256, 128)."""
ROW_BYTES = 4096
"""A hidden state of 2048 elements in bf16, as OLMoE's."""
PAIRS_PER_SECOND = 8e6
"""Pairs a device of relative speed 1 computes: 12.6 MFLOP each (OLMoE) at 100 TFLOP/s."""
_BLOCK_CELLS = 2**20
"""(device, receiver) cells priced at once; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class LayerTraffic:
    """What the MoE layers send under hierarchical dispatch, and compute, for all tokens of a trace."""

    num_tokens: int
    devices_per_node: tuple[int, ...]
    cross_node_links: tuple[sparse.csr_array, ...]
    """One `[devices, nodes]` a layer: copies from each device to each node, where its rail peer takes them in."""
    intra_node_links: tuple[sparse.csr_array, ...]
    """One `[devices, local ranks]` a layer: copies from each device to each local rank of its own node."""
    device_load: npt.NDArray[np.float64]
    """`[layers, devices]` pairs computed, over the device's relative speed."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer, mean over the layers."""

    dispatch: float
    compute: float
    """Mean over devices."""
    combine: float
    idle: float
    """What the slowest device adds to the mean."""

    @property
    def total(self) -> float:
        return self.dispatch + self.compute + self.combine + self.idle

    def to_dict(self) -> dict[str, float]:
        """By the names of docs/metrics.md."""
        return {
            "modelled_layer_time": self.total,
            "modelled_dispatch_time": self.dispatch,
            "modelled_compute_time": self.compute,
            "modelled_combine_time": self.combine,
            "modelled_idle_time": self.idle,
        }


def modelled_layer_time(
    traffic: LayerTraffic,
    topology: Topology,
    *,
    batch_tokens: int = BATCH_TOKENS,
    row_bytes: int = ROW_BYTES,
    pairs_per_second: float = PAIRS_PER_SECOND,
) -> LayerTime:
    """Time of one layer with hierarchical dispatch (module docstring).

    Args:
        traffic: an `evaluation.Evaluation` is one.
        topology: of the traffic's shape; its links are used, its speeds are in `device_load` already.
        batch_tokens: tokens over all devices.
        row_bytes: bytes of one copy of a token.
        pairs_per_second: of a device of relative speed 1.

    Raises:
        MismatchError: the traffic is of another shape.
    """
    if traffic.devices_per_node != tuple(len(node.devices) for node in topology.nodes):
        sizes = "+".join(map(str, traffic.devices_per_node))
        raise MismatchError(f"{topology.source}: nodes: {topology.shape}, but the evaluation is of nodes of {sizes}; evaluate again")
    batches = batch_tokens / max(1, traffic.num_tokens)
    copy_bytes = batches * row_bytes
    cross = _stage_time(traffic.cross_node_links, copy_bytes, topology.rail_peers, topology.cross_node, topology)
    intra = _stage_time(traffic.intra_node_links, copy_bytes, _neighbours(topology), topology.intra_node, topology)
    load = traffic.device_load * batches / pairs_per_second
    compute = float(load.mean())
    idle = max(0.0, float(np.mean(load.max(axis=1))) - compute)
    return LayerTime(dispatch=cross + intra, compute=compute, combine=cross + intra, idle=idle)


def _neighbours(topology: Topology) -> npt.NDArray[np.int64]:
    """`[devices, local ranks]` the devices of each device's own node; on smaller nodes they repeat."""
    sizes = np.array([len(node.devices) for node in topology.nodes])
    first = np.cumsum(sizes) - sizes
    node = topology.node_of_device[:, None]
    found: npt.NDArray[np.int64] = first[node] + np.arange(sizes.max()) % sizes[node]
    return found


def _stage_time(
    links: Sequence[sparse.csr_array], copy_bytes: float, receiver: npt.NDArray[np.int64], link: Link, topology: Topology
) -> float:
    """Mean over layers of one stage's time, in seconds.

    Args:
        links: a `[devices, j]` a layer: copies from each device to each of its receivers.
        copy_bytes: of one copy.
        receiver: `[devices, j]` their device numbers.
    """
    bandwidth = None if topology.bandwidth is None else np.array(topology.bandwidth)
    num_devices, width = receiver.shape
    block = max(1, _BLOCK_CELLS // width)
    busiest = []
    for copies in links:
        sends = np.zeros(num_devices)
        takes_in = np.zeros(num_devices)
        for start in range(0, num_devices, block):
            rows, to = slice(start, start + block), receiver[start : start + block]
            devices = np.arange(start, start + len(to))[:, None]
            speed = link.bandwidth_bytes_per_s if bandwidth is None else bandwidth[devices, to]
            seconds = copies[rows].toarray() * copy_bytes / speed
            sends[rows] = seconds.sum(axis=1)
            np.add.at(takes_in, to.ravel(), seconds.ravel())
        longest = max(sends.max(), takes_in.max())
        busiest.append(longest + link.latency_s if longest else 0.0)
    return float(np.mean(busiest))
