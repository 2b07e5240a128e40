"""EPLB's balance with fewer copies: its devices, as they are, on other nodes.

Where replicas are drawn by weight alone, what a device computes does not depend on where it stands. So whole devices may trade
places between nodes, until experts that fire together, and the replicas of one expert, are on few nodes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import padded, tokens_of_experts
from grace_moe.compiled import kernel, part
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import GATHERING_HEAT, GATHERING_PROPOSALS
from grace_moe.planning.grace.search.annealing import Cooling, make_anneal
from grace_moe.topology import Topology

_HOT, _COLD = GATHERING_HEAT


def gather_devices(layer: LayerPlacement, ids: npt.NDArray[np.int64], topology: Topology, effort: float, seed: int) -> LayerPlacement:
    """The layer with its devices' contents permuted; unchanged where devices are not alike, or there is one node.

    Args:
        layer: replicas drawn by weight.
        ids: `[T, k]` of the tokens to judge by, -1 = none.
        effort: multiplies the trades that are tried.
    """
    if topology.num_nodes == 1 or len(set(topology.relative_speed)) > 1 or not len(ids):
        return layer
    experts = len(layer.devices_of_expert)
    held = np.zeros((topology.num_devices, experts))
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        held[list(devices), expert] = weights
    state = gathering_state(held, topology, ids)
    proposals = int(GATHERING_PROPOSALS * effort)
    cooling = Cooling(proposals=proposals, steps=proposals - 1, hot=_HOT, cold=_COLD, least_gain=1e-12)
    _search(state, 0.0, cooling, seed)
    place = state.best
    return replace(layer, devices_of_expert=tuple(tuple(int(place[d]) for d in devices) for devices in layer.devices_of_expert))


class Trade(NamedTuple):
    """Two devices' contents change places."""

    first: int
    """-1 = none."""
    second: int


class GatheringState(NamedTuple):
    """D devices, N nodes, E experts, T tokens. Energy: nodes that a token is expected to reach."""

    ids: npt.NDArray[np.int32]
    """`[T, k]`, E = none."""
    starts: npt.NDArray[np.int64]
    """`[E + 1]` expert e's tokens are `members[starts[e] : starts[e + 1]]`."""
    members: npt.NDArray[np.int32]
    held: npt.NDArray[np.float64]
    """`[D, E]` of an expert's pairs, what the contents of each device compute."""
    node_of: npt.NDArray[np.int64]
    """`[D]` node of each place."""
    share: npt.NDArray[np.float64]
    """`[N, E + 1]` of an expert's pairs that a node computes; those of "none" are nowhere."""
    missed: npt.NDArray[np.float64]
    """`[T, N]` chance that a token does not reach the node."""
    new_missed: npt.NDArray[np.float64]
    """`[touched, 2]` of the two nodes of a trade."""
    touched: npt.NDArray[np.int64]
    """`[T]` the tokens whose nodes a trade may change; `tried[0]` of them."""
    seen: npt.NDArray[np.int64]
    """`[T]` the last trade that touched a token."""
    tried: npt.NDArray[np.int64]
    """`[2]` tokens touched by the last trade, and its number."""
    solution: npt.NDArray[np.int64]
    """`[D]` the place where each device's contents stand."""
    best: npt.NDArray[np.int64]
    """The best of it so far."""


def gathering_state(held: npt.NDArray[np.float64], topology: Topology, ids: npt.NDArray[np.int64]) -> GatheringState:
    """The state with all contents where they are; `held` `[D, E]`, `ids` `[T, k]` with -1 = none."""
    devices, experts = held.shape
    choices = padded(ids, experts)
    starts, members = tokens_of_experts(choices, experts)
    share = np.zeros((topology.num_nodes, experts + 1))
    for device, node in enumerate(topology.node_of_device):
        share[node, :experts] += held[device]
    missed = np.ones((len(ids), topology.num_nodes))
    for j in range(ids.shape[1]):
        missed *= 1 - share[:, choices[:, j]].T
    place = np.arange(devices)
    return GatheringState(
        ids=choices,
        starts=starts,
        members=members,
        held=held,
        node_of=topology.node_of_device,
        share=share,
        missed=missed,
        new_missed=np.empty((len(ids), 2)),
        touched=np.empty(len(ids), np.int64),
        seen=np.zeros(len(ids), np.int64),
        tried=np.zeros(2, np.int64),
        solution=place,
        best=place.copy(),
    )


def energy(state: GatheringState) -> float:
    """Nodes that a token is expected to reach."""
    return float((1 - state.missed).sum(axis=1).mean())


@part
def _propose(state: GatheringState) -> Trade:
    a, b = np.random.randint(len(state.solution)), np.random.randint(len(state.solution))
    if state.node_of[state.solution[a]] == state.node_of[state.solution[b]]:
        return Trade(-1, -1)
    return Trade(a, b)


@part
def _change(state: GatheringState, trade: Trade, most: float) -> float:
    """Of the energy. `share` is after the trade, and `new_missed` of the tokens that it touches."""
    a, b, held = trade.first, trade.second, state.held
    m, n = state.node_of[state.solution[a]], state.node_of[state.solution[b]]
    _exchange(state, m, n, a, b)
    state.tried[0] = 0
    state.tried[1] += 1
    change = 0.0
    for e in range(held.shape[1]):
        if held[a, e] == held[b, e]:
            continue
        for p in range(state.starts[e], state.starts[e + 1]):
            t = state.members[p]
            if state.seen[t] != state.tried[1]:
                state.seen[t] = state.tried[1]
                change += _more_reached(state, t, m, n)
    return change / len(state.ids)


@part
def _exchange(state: GatheringState, m: int, n: int, a: int, b: int) -> None:
    """Node m gives the contents of device a for those of b, which node n has."""
    held, share = state.held, state.share
    for e in range(held.shape[1]):
        share[m, e] += held[b, e] - held[a, e]
        share[n, e] += held[a, e] - held[b, e]


@part
def _more_reached(state: GatheringState, token: int, m: int, n: int) -> float:
    """By how much the token reaches nodes m and n more than before the trade."""
    i = state.tried[0]
    state.tried[0] += 1
    state.touched[i] = token
    missed_m, missed_n = 1.0, 1.0
    for j in range(state.ids.shape[1]):
        missed_m *= 1 - state.share[m, state.ids[token, j]]
        missed_n *= 1 - state.share[n, state.ids[token, j]]
    state.new_missed[i, 0], state.new_missed[i, 1] = missed_m, missed_n
    return float(state.missed[token, m] + state.missed[token, n] - missed_m - missed_n)


@part
def _apply(state: GatheringState, trade: Trade, energy: float) -> float:
    a, b, place = trade.first, trade.second, state.solution
    m, n = state.node_of[place[a]], state.node_of[place[b]]
    for i in range(state.tried[0]):
        state.missed[state.touched[i], m], state.missed[state.touched[i], n] = state.new_missed[i, 0], state.new_missed[i, 1]
    place[a], place[b] = place[b], place[a]
    return energy


@part
def _undo(state: GatheringState, trade: Trade) -> None:
    m, n = state.node_of[state.solution[trade.first]], state.node_of[state.solution[trade.second]]
    _exchange(state, m, n, trade.second, trade.first)


_anneal = make_anneal(_propose, _change, _apply, _undo)


@kernel
def _search(state: GatheringState, start: float, cooling: Cooling, seed: int) -> tuple[float, float]:
    return _anneal(state, start, cooling, seed)
