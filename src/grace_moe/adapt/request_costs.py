"""What a layer's placement costs each request of a sample: copies between nodes, and pairs of each device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.choice import choice_table
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RequestCosts:
    """Of one layer. R requests, D devices."""

    tokens: Floats
    """`[R]`"""
    copies: Floats
    """`[R]` (token, other node) copies."""
    pairs: Floats
    """`[R, D]` pairs that each device computes, over its speed."""


def routed(layer: LayerPlacement, topology: Topology, replica_choice: str, ids: Ints, source: Ints, tokens: Ints) -> tuple[Ints, Ints]:
    """`[T, k]` device of each pair (-1 = none), and `[T]` copies to other nodes.

    Args:
        ids: `[T, k]` choices, -1 = none.
        source, tokens: `[T]` device where each token comes in, and its number.
    """
    devices: Ints = choice_table(layer, topology, replica_choice).choose(layer.layer_id, ids, source, tokens, seed=0)
    node = topology.node_of_device
    reached = np.zeros((len(ids), topology.num_nodes + 1), bool)
    reached[np.arange(len(ids))[:, None], np.where(devices >= 0, node[devices], topology.num_nodes)] = True
    reached[np.arange(len(ids)), node[source]] = False
    return devices, reached[:, :-1].sum(axis=1)


def request_costs(layer: LayerPlacement, topology: Topology, replica_choice: str, ids: Ints, requests: Ints) -> RequestCosts:
    """Costs of each request; requests are dealt to the devices in turn.

    Args:
        ids: `[T, k]` choices, -1 = none.
        requests: `[T]` 0, 1, ...: request of each token.
    """
    count, num_devices = int(requests.max(initial=-1)) + 1, topology.num_devices
    devices, copies = routed(layer, topology, replica_choice, ids, requests % num_devices, np.arange(len(ids)))
    cells = (requests[:, None] * num_devices + devices)[devices >= 0]
    pairs = np.bincount(cells, minlength=count * num_devices).reshape(count, num_devices)
    copies_of_request = np.zeros(count)
    np.add.at(copies_of_request, requests, copies)
    return RequestCosts(
        tokens=np.bincount(requests, minlength=count).astype(float),
        copies=copies_of_request,
        pairs=pairs / topology.relative_speed,
    )
