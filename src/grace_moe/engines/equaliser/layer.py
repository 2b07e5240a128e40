"""One layer whose experts change places: which device holds which, and what a change is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

PRICE = 4.0
"""Copies per token that a unit of the devices' squared relative imbalance is worth: as the planner of `grace` prices it."""
MAX_TOKENS = 16_384
"""Tokens that tell which replica saves most copies; more change little and cost time."""

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer[Any]]


class LayerState:
    """A layer on its way to another placement: `holds` changes, the rest tells what a change is worth."""

    def __init__(self, layer: LayerPlacement, topology: Topology, loads: Floats, ids: Ids | None = None) -> None:
        """`loads` `[experts]` of any scale; `ids` `[tokens, k]` choices, None = co-activation unknown."""
        self.layer = layer
        self.node = topology.node_of_device
        self.nodes, self.devices = topology.num_nodes, topology.num_devices
        self.even = topology.relative_speed / topology.relative_speed.sum()
        self.devices_of_node = np.bincount(self.node, minlength=self.nodes)
        self.holds = np.zeros((len(loads), self.devices), dtype=bool)
        for expert, devices in enumerate(layer.devices_of_expert):
            self.holds[expert, list(devices)] = True
        self.before = self.holds.copy()
        self.home = self.node[[devices[0] for devices in layer.devices_of_expert]]
        self.loads = loads / max(float(loads.sum()), 1.0)
        self.ids = np.zeros((0, 1), dtype=np.int64) if ids is None else ids[:: max(1, -(-len(ids) // MAX_TOKENS))].astype(np.int64)
        self.saved = np.stack([self._copies_saved(node) for node in range(self.nodes)])

    def placed(self) -> LayerPlacement:
        """As a layer: experts held as before keep their weights, the others' replicas share evenly."""
        old = self.layer
        devices, weights, decode = [], [], []
        for expert, (hosts, shares) in enumerate(zip(old.devices_of_expert, old.replica_weights, strict=True)):
            same = bool((self.before[expert] == self.holds[expert]).all())
            now = np.flatnonzero(self.holds[expert]).tolist()
            held = hosts if same else [d for d in hosts if d in now] + [d for d in now if d not in hosts]  # the primary stays first
            even = (1.0 / len(held),) * len(held)
            devices.append(tuple(held))
            weights.append(shares if same else even)
            decode.append(old.decode_weights[expert] if same and old.decode_weights else even)
        return replace(
            old,
            devices_of_expert=tuple(devices),
            replica_weights=tuple(weights),
            decode_weights=tuple(decode) if old.decode_weights else (),
        )

    def counts(self) -> npt.NDArray[np.int64]:
        """`[devices]` experts that each device holds."""
        return np.asarray(self.holds.sum(axis=0))

    def shares(self, holds: npt.NDArray[np.bool_]) -> Floats:
        """`[experts, devices]` part of each expert's tokens that each device computes when tokens take a replica on their own
        device, else one on their node, else any: a node's replicas share its tokens, all share those of nodes without one.

        (A token whose own device has one of its node's replicas takes that: the node's replicas come out even all the same.)
        """
        held = np.stack([holds[:, self.node == node].sum(axis=1) for node in range(self.nodes)], axis=1)  # [experts, nodes]
        without = ((held == 0) * self.devices_of_node).sum(axis=1)
        near = self.devices_of_node / np.maximum(held, 1)
        each = near[:, self.node] + (without / np.maximum(held.sum(axis=1), 1))[:, None]
        return np.asarray(holds * each / self.devices)

    def imbalance(self, loads: Floats) -> Floats:
        """`[...]` squared relative deviation of loads `[..., devices]` from what their speed would take."""
        return np.asarray(((loads / self.even - 1.0) ** 2).mean(axis=-1))

    def saved_imbalance(self, device: int, held: bool) -> Floats:
        """`[experts]` imbalance that each expert saves by being held on a device, or by not being held there."""
        shares = self.shares(self.holds)
        changed = self.holds.copy()
        changed[:, device] = held
        now = self.loads @ shares
        then = now + self.loads[:, None] * (self.shares(changed) - shares)
        return np.asarray(self.imbalance(now) - self.imbalance(then))

    def hold(self, expert: int, device: int, held: bool) -> None:
        """Put a replica on a device, or take it away."""
        node = self.node[device]
        self.holds[expert, device] = held
        if not self.holds[expert, self.node == self.home[expert]].any():
            self.home[expert] = self.node[np.argmax(self.holds[expert])]
            self.saved = np.stack([self._copies_saved(n) for n in range(self.nodes)])
        else:
            self.saved[node] = self._copies_saved(int(node))

    def least_needed(self, device: int) -> int | None:
        """The expert whose replica on a device is worth least; None where it holds no replica."""
        alone = self.holds[:, self.node == self.node[device]].sum(axis=1) == 1
        worth = PRICE * self.saved_imbalance(device, False) - alone * self.loads / self.nodes
        worth[~self.holds[:, device] | (self.holds.sum(axis=1) == 1)] = -np.inf
        return None if np.isneginf(worth).all() else int(np.argmax(np.round(worth, 12)))

    def _copies_saved(self, node: int) -> Floats:
        """`[experts]` copies per token that a replica on a node saves: of the tokens from there, those that visit another node for
        this expert alone."""
        experts = len(self.holds)
        if not len(self.ids) or self.nodes == 1:
            return np.zeros(experts)
        here = self.holds[:, self.node == node].any(axis=1)
        visited = np.where(here, node, self.home)[self.ids]
        away = (self.ids >= 0) & (visited != node)
        tokens = np.broadcast_to(np.arange(len(self.ids))[:, None], visited.shape)
        reasons = np.bincount((tokens * self.nodes + visited)[away], minlength=len(self.ids) * self.nodes)
        alone = away & (reasons[tokens * self.nodes + visited] == 1)
        return np.asarray(np.bincount(self.ids[alone], minlength=experts) / (len(self.ids) * self.nodes))
