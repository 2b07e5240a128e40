"""EPLB's balance with fewer copies: its devices, as they are, on other nodes.

Where replicas are drawn by weight alone, what a device computes does not depend on where it stands. So whole devices may trade
places between nodes, until experts that fire together, and the replicas of one expert, are on few nodes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.choice.cover import tokens_of_experts
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import GATHERING_HEAT, GATHERING_PROPOSALS
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
    padded = np.where(ids < 0, experts, ids).astype(np.int32)
    starts, members = tokens_of_experts(padded, experts)
    place = np.arange(topology.num_devices)
    _trade(place, held, topology.node_of_device, padded, starts, members, int(GATHERING_PROPOSALS * effort), seed)
    return replace(layer, devices_of_expert=tuple(tuple(int(place[d]) for d in devices) for devices in layer.devices_of_expert))


@njit(cache=True, nogil=True)
def _trade(place: Any, held: Any, node_of: Any, ids: Any, starts: Any, members: Any, proposals: Any, seed: Any) -> None:
    """Permute `place` `[D]`, where each device's contents stand, to lower the expected number of nodes that a token reaches."""
    np.random.seed(seed)
    num_devices, experts = held.shape
    num_nodes = node_of.max() + 1
    num_tokens, k = ids.shape
    share = np.zeros((num_nodes, experts + 1))  # of an expert's pairs that a node computes; the padding's are nowhere
    for d in range(num_devices):
        share[node_of[d], :experts] += held[d]
    missed = np.ones((num_tokens, num_nodes))  # chance that a token does not reach the node
    for t in range(num_tokens):
        for n in range(num_nodes):
            for j in range(k):
                missed[t, n] *= 1 - share[n, ids[t, j]]
    new = np.empty((num_tokens, 2))
    seen = np.full(num_tokens, -1)
    touched = np.empty(num_tokens, np.int64)
    energy, best, best_place = 0.0, 0.0, place.copy()
    cooling = (_COLD / _HOT) ** (1.0 / max(1, proposals - 1))
    temperature = _HOT
    for step in range(proposals):
        temperature *= cooling
        a, b = np.random.randint(num_devices), np.random.randint(num_devices)
        m, n = node_of[place[a]], node_of[place[b]]
        if m == n:
            continue
        for e in range(experts):
            share[m, e] += held[b, e] - held[a, e]
            share[n, e] += held[a, e] - held[b, e]
        count, change = 0, 0.0
        for e in range(experts):
            if held[a, e] == held[b, e]:
                continue
            for p in range(starts[e], starts[e + 1]):
                t = members[p]
                if seen[t] == step:
                    continue
                seen[t] = step
                touched[count] = t
                count += 1
                new[t, 0], new[t, 1] = 1.0, 1.0
                for j in range(k):
                    new[t, 0] *= 1 - share[m, ids[t, j]]
                    new[t, 1] *= 1 - share[n, ids[t, j]]
                change += missed[t, m] + missed[t, n] - new[t, 0] - new[t, 1]
        change /= num_tokens
        if change > -np.log(np.random.random() + 1e-300) * temperature:
            for e in range(experts):
                share[m, e] += held[a, e] - held[b, e]
                share[n, e] += held[b, e] - held[a, e]
            continue
        for i in range(count):
            missed[touched[i], m], missed[touched[i], n] = new[touched[i], 0], new[touched[i], 1]
        place[a], place[b] = place[b], place[a]
        energy += change
        if energy < best - 1e-12:
            best = energy
            best_place[:] = place
    place[:] = best_place
