"""Which replica computes a (token, expert) pair: WRR and TAR as lookup tables (docs/method.md#online-phase).

A table gives, for each source device and expert, the candidate devices and integer thresholds on a hash of
(seed, layer, token, expert). NumPy and torch read the same tables with the same integer arithmetic, so that evaluation
and runtime pick alike, and a run can be repeated exactly. Where a layer has decode weights, decode steps have a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice.hashing import DRAW_BITS, draw
from grace_moe.choice.joint import joint_choice_table
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


class ChoiceTable(Protocol):
    """One layer's replica choice, as arrays of NumPy or tensors of torch."""

    def choose(self, layer_id: int, topk_ids: Any, sources: Any, tokens: Any, *, seed: int) -> Any:
        """`[tokens, k]` device of each pair, -1 where no expert is chosen.

        Args:
            layer_id: the model's own number of the layer.
            topk_ids: int64 `[tokens, k]` logical ids, -1 = none.
            sources, tokens: int64 `[tokens]` source device and number of each token.
        """
        ...

    def convert(self, to: Callable[[Any], Any]) -> ChoiceTable:
        """The same table with every array passed through `to`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReplicaChoiceTable:
    """One layer's choices: S = devices as sources, E = experts, R = most candidates of any pair."""

    devices: Any
    """int64 `[S, E, R]` candidate devices; short rows repeat their last candidate."""
    thresholds: Any
    """int64 `[S, E, R - 1]`: draws below `thresholds[..., r]` (and not below the one before) pick candidate r."""

    def convert(self, to: Callable[[Any], Any]) -> ReplicaChoiceTable:
        """The same table with every array passed through `to`."""
        return ReplicaChoiceTable(devices=to(self.devices), thresholds=to(self.thresholds))

    def choose(self, layer_id: int, topk_ids: Any, sources: Any, tokens: Any, *, seed: int) -> Any:
        """See `ChoiceTable.choose`."""
        draws = draw(seed, layer_id, tokens[:, None], topk_ids)
        return choose_devices(self.devices, self.thresholds, topk_ids, sources[:, None], draws)


def replica_choice_table(layer: LayerPlacement, topology: Topology, policy: str) -> ReplicaChoiceTable:
    """Candidates and thresholds of every source and expert under `wrr` or `tar`.

    `wrr`: all replicas, by polling weight. `tar`: the replica on the source; else those on its node, by weight;
    else all, by weight.
    """
    replicas = np.array([len(hosts) for hosts in layer.devices_of_expert])
    held = np.arange(replicas.max()) < replicas[:, None]
    devices, weights = np.zeros(held.shape, np.int64), np.zeros(held.shape)
    devices[held] = np.fromiter(chain.from_iterable(layer.devices_of_expert), np.int64)
    weights[held] = np.fromiter(chain.from_iterable(layer.replica_weights), float)
    node = topology.node_of_device
    if policy == "wrr":
        table, thresholds = _candidates(devices, weights, held[None])
        everywhere = np.zeros_like(node)
        return ReplicaChoiceTable(devices=table[everywhere], thresholds=thresholds[everywhere])
    near = held & (node[devices] == np.arange(topology.num_nodes)[:, None, None])
    near = np.where(near.any(axis=2, keepdims=True), near, held)
    table, thresholds = (of_node[node] for of_node in _candidates(devices, weights, near))
    expert, replica = np.nonzero(held)
    own = devices[expert, replica]
    table[own, expert] = own[:, None]
    thresholds[own, expert] = 1 << DRAW_BITS
    return ReplicaChoiceTable(devices=table, thresholds=thresholds)


def _candidates(devices: Ints, weights: Floats, some: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """`[S, E, R]` devices and `[S, E, R - 1]` thresholds, as `ReplicaChoiceTable` has them.

    Args:
        devices, weights: `[E, R]` of all replicas.
        some: `[S, E, R]` which of them are candidates, at least one of each expert.
    """
    place, count = np.arange(some.shape[2]), some.sum(axis=2, keepdims=True)
    order = np.argsort(~some, axis=2, kind="stable")  # candidates first, as they come
    order = np.take_along_axis(order, np.minimum(place, count - 1), axis=2)
    expert = np.arange(len(devices))[:, None]
    weight = np.where(place < count, weights[expert, order], 0.0)
    total = weight.cumsum(axis=2)[..., -1:]
    shares = np.where(total > 0, weight / np.where(total > 0, total, 1.0), 1 / count)
    below = np.round(shares.cumsum(axis=2)[..., :-1] * (1 << DRAW_BITS)).astype(np.int64)
    return devices[expert, order], np.where(place[:-1] < count - 1, below, 1 << DRAW_BITS)


def choice_table(layer: LayerPlacement, topology: Topology, policy: str) -> ChoiceTable:
    """The table of one layer under its own policy, else the one given, of `placement.REPLICA_CHOICES`."""
    policy = layer.replica_choice or policy
    if policy == "joint":
        return joint_choice_table(layer, topology)
    return replica_choice_table(layer, topology, policy)


def choice_tables(placement: Placement) -> tuple[ChoiceTable, ...]:
    """One table a layer, by the placement's own policy: of prefill, and of decode where a layer has no other for it."""
    return tuple(choice_table(layer, placement.topology, placement.replica_choice) for layer in placement.layers)


def decode_choice_tables(placement: Placement) -> tuple[ChoiceTable | None, ...]:
    """One table a layer over the replicas that decode uses, by their weights there; None where decode chooses as prefill does."""
    return tuple(
        choice_table(layer.in_decode(), placement.topology, placement.replica_choice) if layer.decode_weights else None
        for layer in placement.layers
    )


def choose_devices(devices: Any, thresholds: Any, topk_ids: Any, sources: Any, draws: Any) -> Any:
    """The device that computes each pair: `[tokens, k]`, -1 where no expert is chosen.

    Works on NumPy arrays and torch tensors alike.

    Args:
        devices, thresholds: a ReplicaChoiceTable's arrays (or tensors of them).
        topk_ids: int64 `[tokens, k]` logical ids, -1 = none.
        sources: int64 `[tokens, 1]` source device of each token.
        draws: int64 `[tokens, k]` from `draw`.
    """
    experts = topk_ids * (topk_ids >= 0)
    if thresholds.shape[2] == 0:
        chosen = devices[sources, experts, 0]
    else:
        index = (draws[..., None] >= thresholds[sources, experts]).sum(-1)
        chosen = devices[sources, experts, index]
    none = topk_ids < 0
    return chosen * ~none - 1 * none
