"""`evaluate`: replay a trace through a placement, and count what it costs: route, count, metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError
from grace_moe.evaluation.batches import active_experts, batch_balance
from grace_moe.evaluation.count import LayerCounts, count
from grace_moe.evaluation.metrics import Copies, Evaluation, PassCopies, PhaseCounts
from grace_moe.evaluation.route import route
from grace_moe.evaluation.serving import Serving, arrivals
from grace_moe.placement import Placement, check_same_model
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

Ints = npt.NDArray[np.int64]


def evaluate(
    placement: Placement,
    trace: RoutingTrace,
    topology: Topology | None = None,
    *,
    seed: int = 0,
    serving: Serving | None = None,
    passes: Ints | None = None,
) -> Evaluation:
    """Replay `trace` through `placement`. Tokens of phase decode take the replicas that the placement has for decode.

    What was not recorded is left out: tokens without any choice don't count, and layers without any pair enter no mean.

    >>> from grace_moe import Topology, evaluate, plan
    >>> from grace_moe.trace import synthetic_trace
    >>> trace = synthetic_trace(tokens=400, experts=16, top_k=4)
    >>> found = evaluate(plan(trace, Topology.parse("2x2"), method="linear"), trace)
    >>> found.cross_node_copies <= found.flat_cross_node_copies <= found.pair_cross_node_copies
    True

    Args:
        topology: links and speeds to judge by, where they are not the placement's own; the shape must be the same.
        seed: of the replica choice.
        serving: how requests come in and are batched; None = requests dealt round-robin over the devices, replicas by the
            placement's own choice.
        passes: int64 `[tokens]` forward pass of each token: copies are counted by pass too.

    Raises:
        MismatchError: trace, placement and topology don't belong together.
        UsageError: an unknown policy, or batches of no tokens.
    """
    topology = placement.topology if topology is None else topology
    serving = Serving() if serving is None else serving
    _check(placement, trace, topology)
    arrived = arrivals(placement, trace, serving)
    decoding = arrived.decoding
    chose = trace.topk_ids.max(axis=(1, 2), initial=-1) >= 0
    num_tokens, num_decoding = int(chose.sum()), int(chose[decoding].sum())
    both_phases = 0 < num_decoding < num_tokens
    layers, decode_layers, active, balance = [], [], [], []
    for index, devices in enumerate(route(placement, trace, arrived, topology, policy=serving.policy, seed=seed)):
        layers.append(count(devices, arrived.source, topology, passes))
        if both_phases:
            decode_layers.append(count(devices[decoding], arrived.source[decoding], topology))
        if arrived.batches is not None:
            balance.append(batch_balance(devices, arrived.batches, topology.relative_speed))
        if arrived.steps is not None:
            active.append(active_experts(trace.topk_ids[:, index], devices, arrived.steps, topology.num_devices))
    return Evaluation(
        num_tokens=num_tokens,
        num_experts=placement.num_experts,
        devices_per_node=tuple(len(node.devices) for node in topology.nodes),
        slots=placement.slots_per_device(),
        copies=_copies(layers),
        cross_node_links=tuple(layer.cross_node_links for layer in layers),
        intra_node_links=tuple(layer.intra_node_links for layer in layers),
        device_load=_pairs_of_device(layers) / topology.relative_speed,
        phases=_phases(layers, decode_layers, num_tokens, num_decoding, topology) if both_phases else None,
        active_experts=np.array(active) if active else None,
        batch_balance=np.array(balance) if balance else None,
        by_pass=None if passes is None else _by_pass(layers),
    )


def _check(placement: Placement, trace: RoutingTrace, topology: Topology) -> None:
    """Raise MismatchError unless all three belong together."""
    check_same_model(placement, trace)
    if placement.topology.shape != topology.shape:
        raise MismatchError(
            f"{topology.source}: nodes: {topology.shape}, but {placement.source} is planned for {placement.topology.shape}; plan again"
        )
    if trace.surrogate:
        raise MismatchError(f"{trace.source}: a surrogate, drawn to match counts of pairs; plan on it, and measure on a trace of tokens")


def _copies(layers: Sequence[LayerCounts]) -> Copies:
    return Copies(
        cross_node=np.array([layer.cross_node for layer in layers]),
        intra_node=np.array([layer.intra_node for layer in layers]),
        flat=np.array([layer.flat for layer in layers]),
        flat_cross_node=np.array([layer.flat_cross_node for layer in layers]),
        pairs=np.array([layer.pairs for layer in layers]),
        pairs_cross_node=np.array([layer.pairs_cross_node for layer in layers]),
    )


def _pairs_of_device(layers: Sequence[LayerCounts]) -> Ints:
    return np.stack([layer.pairs_of_device for layer in layers])


def _by_pass(layers: Sequence[LayerCounts]) -> PassCopies:
    return PassCopies(
        cross_node=np.stack([layer.pass_cross_node for layer in layers]),
        flat_cross_node=np.stack([layer.pass_flat_cross_node for layer in layers]),
    )


def _phases(
    layers: Sequence[LayerCounts], in_decode: Sequence[LayerCounts], num_tokens: int, num_decoding: int, topology: Topology
) -> tuple[PhaseCounts, PhaseCounts]:
    """Prefill's part of the counts of all layers, and decode's."""
    cross, decode_cross = _copies(layers).cross_node, _copies(in_decode).cross_node
    pairs, decode_pairs = _pairs_of_device(layers), _pairs_of_device(in_decode)
    speed = topology.relative_speed
    return (
        PhaseCounts(num_tokens=num_tokens - num_decoding, cross_node=cross - decode_cross, device_load=(pairs - decode_pairs) / speed),
        PhaseCounts(num_tokens=num_decoding, cross_node=decode_cross, device_load=decode_pairs / speed),
    )
