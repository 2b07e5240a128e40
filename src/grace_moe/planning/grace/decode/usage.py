"""What decode batches cost with some of the replicas: active experts, copies between nodes, load; and what the loss of one changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.tables import choice_table
from grace_moe.cost.sent import copies_between_nodes
from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.decode.problem import DecodeProblem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One replica given up: the tokens that move, and what the batches cost then. M batches, D devices."""

    expert: int
    device: int
    tokens: Ints
    devices: Ints
    experts: Ints
    """Those with tokens that move."""
    pairs: npt.NDArray[np.int32]
    """`[M, those experts, D]`"""
    active: Ints
    """`[M, D]`"""
    copies: int
    load: Floats


class ReplicaUse:
    """The replicas in use, and what the batches cost with them; `make` takes one away."""

    def __init__(self, problem: DecodeProblem) -> None:
        self.problem = problem
        topology = problem.topology
        self.speed = topology.relative_speed
        self.experts = len(problem.layer.devices_of_expert)
        self.batch_of_token = np.arange(len(problem.ids)) // problem.bounds.batch
        hosts, weights = problem.layer.devices_of_expert, problem.layer.replica_weights
        self.used = [dict(zip(devices, shares, strict=True)) for devices, shares in zip(hosts, weights, strict=True)]
        self.devices = self._choose(self.layer(), np.arange(len(problem.ids)))
        shape = (int(self.batch_of_token.max()) + 1, self.experts, topology.num_devices)
        self.pairs = np.zeros(shape, dtype=np.int32)
        self._add(self.pairs, np.arange(len(problem.ids)), self.devices, 1)
        self.active: Ints = (self.pairs > 0).sum(axis=1)
        self.copies = self._copies(np.arange(len(problem.ids)), self.devices)
        self.load: Floats = self.pairs.sum(axis=(0, 1)) / self.speed

    def without(self, expert: int, device: int) -> Loss:
        """What changes if this replica is given up."""
        tokens = np.flatnonzero((self.problem.ids == expert).any(axis=1))
        row = self.used[expert]
        self.used[expert] = {d: w for d, w in row.items() if d != device}
        devices = self._choose(self.layer(), tokens)
        self.used[expert] = row
        moved = (devices != self.devices[tokens]).any(axis=1)
        tokens, devices = tokens[moved], devices[moved]
        experts = np.unique(self.problem.ids[tokens])
        experts = experts[experts >= 0]
        place = np.zeros(self.experts, dtype=np.int64)
        place[experts] = np.arange(len(experts))
        before = self.pairs[:, experts]
        after = before.copy()
        for sign, chosen in ((-1, self.devices[tokens]), (1, devices)):
            self._add(after, tokens, chosen, sign, place)
        active = self.active + ((after > 0).astype(np.int64) - (before > 0)).sum(axis=1)
        return Loss(
            expert=expert,
            device=device,
            tokens=tokens,
            devices=devices,
            experts=experts,
            pairs=after,
            active=active,
            copies=self.copies - self._copies(tokens, self.devices[tokens]) + self._copies(tokens, devices),
            load=self.load + (after - before).sum(axis=(0, 1)) / self.speed,
        )

    def make(self, change: Loss) -> None:
        """Give the replica up."""
        del self.used[change.expert][change.device]
        self.devices[change.tokens] = change.devices
        self.pairs[:, change.experts] = change.pairs
        self.active, self.copies, self.load = change.active, change.copies, change.load

    def layer(self) -> LayerPlacement:
        """The layer with the replicas in use, by their weights among each other; evenly where those have none."""
        layer = self.problem.layer
        return replace(
            layer,
            devices_of_expert=tuple(tuple(row) for row in self.used),
            replica_weights=tuple(tuple(renormalised(list(row.values()))) for row in self.used),
        )

    def _choose(self, layer: LayerPlacement, tokens: Ints) -> Ints:
        problem = self.problem
        table = choice_table(layer, problem.topology, problem.policy)
        chosen: Ints = table.choose(layer.layer_id, problem.ids[tokens], problem.sources[tokens], tokens, seed=problem.seed)
        return chosen

    def _add(self, pairs: npt.NDArray[np.int32], tokens: Ints, devices: Ints, sign: int, place: Ints | None = None) -> None:
        row, k = np.nonzero(devices >= 0)
        experts = self.problem.ids[tokens[row], k]
        np.add.at(pairs, (self.batch_of_token[tokens[row]], experts if place is None else place[experts], devices[row, k]), sign)

    def _copies(self, tokens: Ints, devices: Ints) -> int:
        """Copies to other nodes."""
        problem = self.problem
        return int(copies_between_nodes(problem.sends, devices, problem.sources[tokens], problem.topology).sum())


def renormalised(weights: list[float]) -> list[float]:
    """Weights that sum to 1; even ones where all are 0."""
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else [1 / len(weights)] * len(weights)
