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

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError
from grace_moe.topology import Link, Topology

BATCH_TOKENS = 32_768
"""Tokens of a batch over all devices: the paper's prefill of (256, 128)."""
ROW_BYTES = 4096
"""A hidden state of 2048 elements in bf16, as OLMoE's."""
PAIRS_PER_SECOND = 8e6
"""Pairs a device of relative speed 1 computes: 12.6 MFLOP each (OLMoE) at 100 TFLOP/s."""


class Counts(Protocol):
    """What a replay counted, of which a time is made; `evaluation.Evaluation` is one."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the trace."""
        ...

    @property
    def devices_per_node(self) -> tuple[int, ...]:
        """Devices of each node."""
        ...

    @property
    def cross_node_links(self) -> npt.NDArray[np.int64]:
        """`[layers, devices, nodes]` copies from each device to each node."""
        ...

    @property
    def intra_node_links(self) -> npt.NDArray[np.int64]:
        """`[layers, devices, local ranks]` copies from each device to each local rank of its node."""
        ...

    @property
    def device_load(self) -> npt.NDArray[np.float64]:
        """`[layers, devices]` pairs computed, over the device's relative speed."""
        ...


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
        """By DESIGN.md's names."""
        return {
            "modelled_layer_time": self.total,
            "modelled_dispatch_time": self.dispatch,
            "modelled_compute_time": self.compute,
            "modelled_combine_time": self.combine,
            "modelled_idle_time": self.idle,
        }


def modelled_layer_time(
    evaluation: Counts,
    topology: Topology,
    *,
    batch_tokens: int = BATCH_TOKENS,
    row_bytes: int = ROW_BYTES,
    pairs_per_second: float = PAIRS_PER_SECOND,
) -> LayerTime:
    """Time of one layer with hierarchical dispatch (module docstring).

    Args:
        topology: of the evaluation's shape; its links are used, its speeds are in the evaluation already.
        batch_tokens: tokens over all devices.
        row_bytes: bytes of one copy of a token.
        pairs_per_second: of a device of relative speed 1.

    Raises:
        MismatchError: the evaluation is of another shape.
    """
    if evaluation.devices_per_node != tuple(len(node.devices) for node in topology.nodes):
        sizes = "+".join(map(str, evaluation.devices_per_node))
        raise MismatchError(f"{topology.source}: nodes: {topology.shape}, but the evaluation is of nodes of {sizes}; evaluate again")
    batches = batch_tokens / max(1, evaluation.num_tokens)
    size = batches * row_bytes
    members = [topology.devices_of_node(node) for node in range(topology.num_nodes)]
    width = evaluation.intra_node_links.shape[2]
    neighbours = np.array([[members[n][rank % len(members[n])] for rank in range(width)] for n in topology.node_of_device])
    cross = _stage_time(evaluation.cross_node_links * size, topology.rail_peers, topology.cross_node, topology)
    intra = _stage_time(evaluation.intra_node_links * size, neighbours, topology.intra_node, topology)
    load = evaluation.device_load * batches / pairs_per_second
    compute = float(load.mean())
    idle = max(0.0, float(np.mean(load.max(axis=1))) - compute)
    return LayerTime(dispatch=cross + intra, compute=compute, combine=cross + intra, idle=idle)


def _stage_time(sent: npt.NDArray[np.floating[Any]], receiver: npt.NDArray[np.int64], link: Link, topology: Topology) -> float:
    """Mean over layers of one stage's time.

    Args:
        sent: `[layers, devices, j]` bytes from each device to each of its receivers.
        receiver: `[devices, j]` their device numbers.
    """
    devices = np.arange(len(receiver))[:, None]
    bandwidth = link.bandwidth_bytes_per_s if topology.bandwidth is None else np.array(topology.bandwidth)[devices, receiver]
    seconds = sent / bandwidth
    busiest = []
    for layer in seconds:
        taken_in = np.bincount(receiver.ravel(), weights=layer.ravel(), minlength=len(receiver))
        longest = max(layer.sum(axis=1).max(), taken_in.max())
        busiest.append(longest + link.latency_s if longest else 0.0)
    return float(np.mean(busiest))
