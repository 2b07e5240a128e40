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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

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


Ints = npt.NDArray[np.int64]


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

    @property
    def recorded(self) -> npt.NDArray[np.bool_]:
        """`[layers]` whether the trace has any pair of the layer; means over layers leave the others out."""
        found: npt.NDArray[np.bool_] = np.any(self.device_load, axis=1)
        return found


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer, mean over the layers that were recorded."""

    dispatch: float
    compute: float
    """Mean over devices."""
    combine: float
    idle: float
    """What the slowest device adds to the mean."""
    hidden: float = 0.0
    """What goes on at the same time, where dispatch and combine overlap with computing."""

    @property
    def total(self) -> float:
        return self.dispatch + self.compute + self.combine + self.idle - self.hidden

    def to_dict(self) -> dict[str, float]:
        """By the names of docs/metrics.md."""
        return dict(zip(TIMES, (self.total, self.dispatch, self.compute, self.combine, self.idle), strict=True))


def mean_time(times: Sequence[LayerTime]) -> LayerTime:
    """The mean of each part."""
    return LayerTime(**{part.name: float(np.mean([getattr(time, part.name) for time in times])) for part in fields(LayerTime)})


TIMES = ("modelled_layer_time", "modelled_dispatch_time", "modelled_compute_time", "modelled_combine_time", "modelled_idle_time")
"""Names of the numbers that `LayerTime.to_dict` gives."""


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
    layers = np.flatnonzero(traffic.recorded)
    if not len(layers):
        return LayerTime(dispatch=0.0, compute=0.0, combine=0.0, idle=0.0)
    batches = batch_tokens / traffic.num_tokens
    copy_bytes = batches * row_bytes
    across, inside = ([links[layer] for layer in layers] for links in (traffic.cross_node_links, traffic.intra_node_links))
    cross = _stage_time(across, copy_bytes, topology.rail_peer, topology.cross_node, topology)
    intra = _stage_time(inside, copy_bytes, partial(_neighbour, topology), topology.intra_node, topology)
    load = traffic.device_load[layers] * batches / pairs_per_second
    compute = float(load.mean())
    idle = max(0.0, float(np.mean(load.max(axis=1))) - compute)
    return LayerTime(dispatch=cross + intra, compute=compute, combine=cross + intra, idle=idle)


def _neighbour(topology: Topology, device: Ints, local_rank: Ints) -> Ints:
    """The device of this local rank on each device's own node."""
    return topology.devices_of_nodes[0][topology.node_of_device[device]] + local_rank


def _stage_time(
    links: Sequence[sparse.csr_array], copy_bytes: float, receiver_of: Callable[[Ints, Ints], Ints], link: Link, topology: Topology
) -> float:
    """Mean over layers of one stage's time, in seconds.

    Args:
        links: a `[devices, j]` a layer: copies from each device to each of its receivers.
        copy_bytes: of one copy.
        receiver_of: gives the receiver's device number for a device and j.
    """
    bandwidth = None if topology.bandwidth is None else np.array(topology.bandwidth)
    num_devices, width = links[0].shape
    block = max(1, _BLOCK_CELLS // width)
    busiest = []
    for copies in links:
        sends, takes_in = np.zeros(num_devices), np.zeros(num_devices)
        for start in range(0, num_devices, block):
            some = copies[start : start + block].tocoo()
            sender = some.row.astype(np.int64) + start
            receiver = receiver_of(sender, some.col.astype(np.int64))
            speed = link.bandwidth_bytes_per_s if bandwidth is None else bandwidth[sender, receiver]
            seconds = np.zeros(some.shape)
            seconds[some.row, some.col] = some.data * copy_bytes / speed
            sends[start : start + block] = seconds.sum(axis=1)
            np.add.at(takes_in, receiver, seconds[some.row, some.col])
        longest = max(sends.max(), takes_in.max())
        busiest.append(longest + link.latency_s if longest else 0.0)
    return float(np.mean(busiest))
