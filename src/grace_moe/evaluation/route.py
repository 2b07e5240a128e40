"""Which device computes each (token, expert) pair of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import BatchPolicy, batch_policy, choice_table
from grace_moe.evaluation.chunks import chunks
from grace_moe.evaluation.serving import Arrivals
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer[Any]]


def route(
    placement: Placement, trace: RoutingTrace, arrivals: Arrivals, topology: Topology, *, policy: str | None = None, seed: int = 0
) -> Iterator[Ints]:
    """Route every layer, one at a time.

    Args:
        topology: what a batch policy judges by: the placement's, or one of the same shape.
        policy: one of `choice.BATCH_POLICIES`, which needs arrivals in batches; None = the placement's own choice. Then tokens
            of phase decode take the replicas that the placement has for decode.
        seed: of the placement's own choice.

    Yields:
        `[tokens, k]` device of each pair, -1 = none; one array a layer.

    Raises:
        UsageError: an unknown policy.
    """
    by_batch = None if policy is None else batch_policy(policy)
    for index, layer in enumerate(placement.layers):
        topk_ids = trace.topk_ids[:, index]
        if by_batch is not None and arrivals.batches is not None:
            yield choose_by_batch(by_batch, layer, topology, topk_ids, arrivals.source, arrivals.batches)
        else:
            yield _choose(placement, layer, topk_ids, arrivals, seed)


def choose_by_batch(policy: BatchPolicy, layer: LayerPlacement, topology: Topology, topk_ids: Ids, source: Ints, batches: Ints) -> Ints:
    """`[tokens, k]` device of each pair of a layer, -1 = none.

    Args:
        topk_ids: `[tokens, k]` the layer's choices.
        source, batches: `[tokens]` source device and batch of each token.
    """
    chosen = np.empty(topk_ids.shape, dtype=np.int64)
    order = np.argsort(batches, kind="stable")
    for tokens in np.split(order, np.flatnonzero(np.diff(batches[order])) + 1):
        chosen[tokens] = policy(layer, topology, topk_ids[tokens].astype(np.int64), source[tokens])
    return chosen


def _choose(placement: Placement, layer: LayerPlacement, topk_ids: Ids, arrivals: Arrivals, seed: int) -> Ints:
    """`[tokens, k]` device of each pair, by the tables of the phases."""
    topology = placement.topology
    devices = np.empty(topk_ids.shape, dtype=np.int64)
    for of_phase, tokens in _by_phase(layer, arrivals.decoding, len(topk_ids)):
        table = choice_table(of_phase, topology, placement.replica_choice)
        for part in chunks(len(tokens), topology.num_devices):
            some = tokens[part]
            devices[some] = table.choose(layer.layer_id, topk_ids[some].astype(np.int64), arrivals.source[some], some, seed=seed)
    return devices


def _by_phase(layer: LayerPlacement, decoding: Ints, num_tokens: int) -> list[tuple[LayerPlacement, Ints]]:
    """The layer as each phase sees it, and the tokens of that phase; one entry where the layer sees no difference."""
    every = np.arange(num_tokens)
    if not layer.decode_weights:
        return [(layer, every)]
    return [(layer, np.setdiff1d(every, decoding, assume_unique=True)), (layer.in_decode(), decoding)]
