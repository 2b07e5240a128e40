"""How long a layer's dispatch and combine take over each transport (docs/cost.md#transports)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.cost.exchange import DEFAULT_SMS, HIGH_THROUGHPUT, LOW_LATENCY, Exchange, TransportKernel
from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, Flows
from grace_moe.cost.hardware import transport_kernel
from grace_moe.cost.links import Tiers, busiest_port, tiers_of
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.wire import SLOT_BYTES, WEIGHT_BYTES
from grace_moe.errors import UsageError
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]
FP8_SCALE = 1 + 4 / 128
"""Bytes of an element that DeepEP dispatches in low latency: one, and a float32 scale for every 128."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a transport needs to know of a cluster and a model, worked out once."""

    topology: Topology
    tiers: Tiers
    model: ModelSizes

    @classmethod
    def of(cls, topology: Topology, model: ModelSizes) -> Cluster:
        """Of a topology."""
        return cls(topology=topology, tiers=tiers_of(topology), model=model)

    @property
    def dispatch_bytes(self) -> float:
        """A dispatched row of ours: hidden state, then k slots and k weights."""
        return self.model.hidden_bytes + self.model.top_k * (SLOT_BYTES + WEIGHT_BYTES)


def exchange_seconds(backend: str, cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """`[layers]` seconds of dispatch, and of combine.

    Args:
        scale: tokens of the batch over those of the flows.

    Raises:
        UsageError: unknown backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](cluster, flows, scale)


def _over(cluster: Cluster, flows: Flows, kind: int, copy_bytes: float) -> Floats:
    per_rate = None if flows.per_rate is None else flows.per_rate[:, kind]
    return busiest_port(flows.ports[:, kind], copy_bytes, cluster.tiers, cluster.topology, per_rate)


def _vanilla(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """A hidden state for every pair, each way."""
    one_way = _over(cluster, flows, PAIRS, cluster.model.hidden_bytes * scale)
    return one_way, one_way


def _flat(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """A copy for every device; a sum of its experts' outputs back."""
    there = _over(cluster, flows, FLAT, cluster.dispatch_bytes * scale)
    return there, _over(cluster, flows, FLAT, cluster.model.hidden_bytes * scale)


def _hierarchical(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """A copy for every node, and from there one for every device; sums back the same way."""
    there, back = (
        _over(cluster, flows, BETWEEN_NODES, copy_bytes * scale) + _over(cluster, flows, INSIDE_NODES, copy_bytes * scale)
        for copy_bytes in (cluster.dispatch_bytes, cluster.model.hidden_bytes)
    )
    return there, back


def _allgather(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """Every token to every device, wherever its experts are; all sums back by reduce-scatter: the same bytes."""
    topology = cluster.topology
    nodes, devices = topology.num_nodes, topology.num_devices / topology.num_nodes
    inside, across = topology.intra_node, topology.cross_node
    everything = flows.num_tokens * scale * cluster.model.hidden_bytes
    seconds = everything * (devices - 1) / devices / inside.bandwidth_bytes_per_s + (inside.latency_s if devices > 1 else 0.0)
    if nodes > 1:
        rails = across.shared_bytes_per_s or devices * across.bandwidth_bytes_per_s
        seconds += everything * (nodes - 1) / nodes / rails + across.latency_s
    each = np.where(flows.recorded, seconds, 0.0)
    return each, each


def _high_throughput(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """DeepEP's normal kernels: a copy for every node and device, both at work at once."""
    model = cluster.model
    there, back = (_deepep(HIGH_THROUGHPUT, direction, cluster, flows, scale) for direction in ("dispatch", "combine"))
    if there is not None and back is not None:
        return there, back
    one_way = [
        np.maximum(_over(cluster, flows, BETWEEN_NODES, size * scale), _over(cluster, flows, INSIDE_NODES, size * scale))
        for size in (model.hidden_size * FP8_SCALE, model.hidden_bytes)
    ]
    return one_way[0], one_way[1]


def _low_latency(cluster: Cluster, flows: Flows, scale: float) -> tuple[Floats, Floats]:
    """DeepEP's low-latency kernels: a copy for every pair, straight to its device: FP8 there, BF16 back."""
    there, back = (_deepep(LOW_LATENCY, direction, cluster, flows, scale) for direction in ("dispatch", "combine"))
    if there is not None and back is not None:
        return there, back
    size = cluster.model.hidden_size
    return _over(cluster, flows, PAIRS, size * FP8_SCALE * scale), _over(cluster, flows, PAIRS, 2.0 * size * scale)


def _deepep(backend: str, direction: str, cluster: Cluster, flows: Flows, scale: float) -> Floats | None:
    """By the fitted kernel; None where there is none.

    A kernel that was fitted inside a node alone knows no links between nodes: those of the topology are added.
    """
    nodes = cluster.topology.num_nodes
    kernel = transport_kernel(cluster.topology, backend, direction)
    if kernel is None:
        return None
    seconds = kernel.seconds(exchange_of(cluster, flows, scale))
    if nodes > 1 and max(kernel.nodes) == 1:
        seconds = seconds + _far(backend, direction, cluster, flows, scale)
    return np.where(flows.recorded, seconds, 0.0)


def _far(backend: str, direction: str, cluster: Cluster, flows: Flows, scale: float) -> Floats:
    kind = PAIRS if backend == LOW_LATENCY else BETWEEN_NODES
    element = FP8_SCALE if direction == "dispatch" else 2.0
    ports = flows.ports[:, kind].copy()
    ports[..., : cluster.tiers.node + 1] = 0
    per_rate = None if flows.per_rate is None else flows.per_rate[:, kind]
    return busiest_port(ports, cluster.model.hidden_size * element * scale, cluster.tiers, cluster.topology, per_rate)


def exchange_of(cluster: Cluster, flows: Flows, scale: float) -> Exchange:
    """`[layers]` what the busiest rank of each layer exchanges."""
    far = cluster.tiers.node + 1

    def busiest(kind: int, part: slice) -> Floats:
        return np.asarray(flows.ports[:, kind, :, :, part].sum(axis=3).max(axis=(1, 2)) * scale)

    layers = np.ones(len(flows.ports))
    everything = slice(None)
    return Exchange(
        tokens=layers * flows.tokens.max() * scale,
        experts=layers * cluster.model.num_experts,
        hidden=layers * cluster.model.hidden_size,
        nodes=layers * cluster.topology.num_nodes,
        copies=busiest(FLAT, everything),
        far_copies=busiest(BETWEEN_NODES, everything),
        near_pairs=busiest(PAIRS, slice(0, far)),
        far_pairs=busiest(PAIRS, slice(far, None)),
        sms=layers * DEFAULT_SMS,
    )


BACKENDS: Mapping[str, Callable[[Cluster, Flows, float], tuple[Floats, Floats]]] = {
    "vanilla": _vanilla,
    "flat": _flat,
    "hierarchical": _hierarchical,
    "allgather": _allgather,
    HIGH_THROUGHPUT: _high_throughput,
    LOW_LATENCY: _low_latency,
}
"""What sends tokens to experts and sums back: plain all-to-all of pairs, ours (`cost.transport`), every token everywhere, and DeepEP's."""


def marginal(kernel: TransportKernel, at: Exchange, of: str) -> float:
    """Seconds that one more of an exchange's counts adds."""
    more = Exchange(**{**vars(at), of: getattr(at, of) + 1})
    return float(np.ravel(kernel.seconds(more) - kernel.seconds(at))[0])
