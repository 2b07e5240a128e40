"""Which replica computes a (token, expert) pair: WRR and TAR as lookup tables (METHOD.md, Online phase).

A table gives, for each source device and expert, the candidate devices and integer thresholds on a hash of
(seed, layer, token, expert). NumPy and torch read the same tables with the same integer arithmetic, so that evaluation
and runtime pick alike, and a run can be repeated exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.hashing import DRAW_BITS, draw
from grace_moe.planning.joint_choice import joint_choice_table
from grace_moe.topology import Topology


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
    num_devices, num_experts = topology.num_devices, len(layer.devices_of_expert)
    node = topology.node_of_device
    width = max(len(devices) for devices in layer.devices_of_expert)
    table = np.zeros((num_devices, num_experts, width), dtype=np.int64)
    thresholds = np.full((num_devices, num_experts, max(width - 1, 0)), 1 << DRAW_BITS, dtype=np.int64)
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        for source in range(num_devices):
            pairs = list(zip(devices, weights, strict=True))
            if policy == "tar":
                local = [p for p in pairs if p[0] == source]
                near = [p for p in pairs if node[p[0]] == node[source]]
                pairs = local or near or pairs
            total = sum(w for _, w in pairs)
            shares = [w / total for _, w in pairs] if total > 0 else [1 / len(pairs)] * len(pairs)
            cumulative = np.cumsum(shares)[:-1]
            thresholds[source, expert, : len(pairs) - 1] = np.round(cumulative * (1 << DRAW_BITS))
            table[source, expert] = [p[0] for p in pairs] + [pairs[-1][0]] * (width - len(pairs))
    return ReplicaChoiceTable(devices=table, thresholds=thresholds)


def choice_table(layer: LayerPlacement, topology: Topology, policy: str) -> ChoiceTable:
    """The table of one layer under a policy of `placement.REPLICA_CHOICES`."""
    if policy == "joint":
        return joint_choice_table(layer, topology)
    return replica_choice_table(layer, topology, policy)


def choice_tables(placement: Placement) -> tuple[ChoiceTable, ...]:
    """One table a layer, by the placement's own policy."""
    return tuple(choice_table(layer, placement.topology, placement.replica_choice) for layer in placement.layers)


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
