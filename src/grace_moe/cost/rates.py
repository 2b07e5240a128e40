"""Exchange rates: what a plan may give of one thing for another, in seconds, at a user's batch, phase and transport."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.cost.backends import BACKENDS, FP8_SCALE, Cluster, marginal
from grace_moe.cost.compute import ExpertKernel, tiled
from grace_moe.cost.exchange import DEFAULT_SMS, DIRECTIONS, HIGH_THROUGHPUT, LOW_LATENCY, Exchange, uniform_exchange
from grace_moe.cost.hardware import PHASES, expert_kernel, hardware_of, transport_kernel
from grace_moe.cost.sizes import ModelSizes
from grace_moe.errors import UsageError
from grace_moe.topology import Link, Topology


@dataclass(frozen=True, kw_only=True)
class ExchangeRates:
    """Seconds of one layer that one more of each adds **on the device that has the most of it**: dispatch and combine together.

    A total over all devices is to be divided by their number where it is spread evenly. What a backend doesn't send costs 0: low
    latency sends pairs and no copies, and allgather sends the same whatever the plan.
    """

    cross_node_copy: float
    """A copy of a token to another node, there and back."""
    intra_node_copy: float
    """A copy to another device of the node that has it."""
    cross_node_pair: float
    """A (token, expert) pair on another node."""
    intra_node_pair: float
    """A pair on another device of the node."""
    pair: float
    """A pair computed, by an expert that is busy enough to be bound by computing; 0 where reading weights takes longer anyway."""
    active_expert: float
    """One more expert with any pairs: its weights are read. 0 where experts are bound by computing."""
    fixed: float
    """What the layer takes with one pair: latencies and launches."""

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return dict(vars(self))


def exchange_rates(cluster: Topology, model: ModelSizes, *, phase: str = "prefill", batch: float, backend: str) -> ExchangeRates:
    """The rates of a cluster at a batch whose tokens choose experts evenly.

    >>> from grace_moe.cost.sizes import OLMOE
    >>> from grace_moe.topology import Link, Topology
    >>> slow, fast = (
    ...     exchange_rates(Topology.parse(shape), OLMOE, batch=32768, backend="hierarchical") for shape in ("2x4", "2x4:h100-400g")
    ... )
    >>> slow.cross_node_copy > 10 * fast.cross_node_copy  # so that slow links buy locality, and fast ones balance
    True

    Args:
        phase: `prefill` or `decode`: which kernel computes.
        batch: tokens over all devices.
        backend: one of `backends.BACKENDS`.

    Raises:
        UsageError: an unknown phase or backend, or a batch of no tokens.
        TopologyError: hardware that is not known, or a calibration that can't be read.
    """
    if phase not in PHASES:
        raise UsageError(f"phase {phase!r} is unknown; use {' or '.join(PHASES)}")
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if not batch > 0:
        raise UsageError(f"batch {batch} is no number of tokens; give 1 or more")
    kernel = expert_kernel(hardware_of(cluster), phase, model)
    pair, active = _compute_rates(kernel, model, batch)
    sent, latency = _transport_rates(Cluster.of(cluster, model), backend, batch)
    return ExchangeRates(**sent, pair=pair, active_expert=active, fixed=latency + max(kernel.floor_s, kernel.launch_s))


def _compute_rates(kernel: ExpertKernel, model: ModelSizes, batch: float) -> tuple[float, float]:
    """Of a pair, and of an active expert. Both change hands where an expert's pairs take as long to compute as its weights to read."""
    pairs = batch * model.top_k / model.num_experts
    active = -np.expm1(-pairs)
    rows = float(tiled(np.array(pairs / active), kernel.tile_rows))
    read, compute = kernel.read_s(model), kernel.compute_s(model)
    bound = rows * compute >= read
    return (compute, 0.0) if bound else (0.0, read)


def _transport_rates(cluster: Cluster, backend: str, batch: float) -> tuple[dict[str, float], float]:
    """Of copies and pairs, and the latency."""
    topology, model = cluster.topology, cluster.model
    inside, across = topology.intra_node, topology.cross_node
    latency = inside.latency_s + (across.latency_s if topology.num_nodes > 1 else 0.0)
    free = dict.fromkeys(("cross_node_copy", "intra_node_copy", "cross_node_pair", "intra_node_pair"), 0.0)
    if backend in (HIGH_THROUGHPUT, LOW_LATENCY):
        return free | _deepep_rates(cluster, backend, batch), 2 * latency
    if backend == "allgather":
        return free, 2 * latency
    both_ways = cluster.dispatch_bytes + model.hidden_bytes
    if backend == "vanilla":
        rates = {f"{where}_pair": 2 * model.hidden_bytes / link.bandwidth_bytes_per_s for where, link in _where(topology)}
    else:
        rates = {f"{where}_copy": both_ways / link.bandwidth_bytes_per_s for where, link in _where(topology)}
    return free | rates, 2 * latency


def _where(topology: Topology) -> tuple[tuple[str, Link], tuple[str, Link]]:
    return (("cross_node", topology.cross_node), ("intra_node", topology.intra_node))


def _deepep_rates(cluster: Cluster, backend: str, batch: float) -> dict[str, float]:
    """By the fitted kernels, at an even exchange; by the links where there are none, or none between nodes."""
    topology, model = cluster.topology, cluster.model
    what = "pair" if backend == LOW_LATENCY else "copy"
    counted = {"cross_node": "far_pairs", "intra_node": "near_pairs"}
    if backend == HIGH_THROUGHPUT:
        counted = {"cross_node": "far_copies", "intra_node": "copies"}
    at = _even(topology, model, batch)
    rates = {f"{where}_{what}": 0.0 for where in counted}
    for direction, element in zip(DIRECTIONS, (FP8_SCALE, 2.0), strict=True):
        kernel = transport_kernel(topology, backend, direction)
        for where, link in _where(topology):
            by_link = model.hidden_size * element / link.bandwidth_bytes_per_s
            fitted = kernel is not None and (where == "intra_node" or max(kernel.nodes) > 1)
            rates[f"{where}_{what}"] += marginal(kernel, at, counted[where]) if kernel is not None and fitted else by_link
    return rates


def _even(topology: Topology, model: ModelSizes, batch: float) -> Exchange:
    def number(value: float) -> npt.NDArray[np.float64]:
        return np.array([float(value)])

    return uniform_exchange(
        tokens=number(batch / topology.num_devices),
        top_k=number(model.top_k),
        experts=number(model.num_experts),
        hidden=number(model.hidden_size),
        nodes=number(topology.num_nodes),
        devices_per_node=number(topology.num_devices / topology.num_nodes),
        sms=number(DEFAULT_SMS),
    )
