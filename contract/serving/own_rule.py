"""Copies to other nodes by vLLM's own choice of replicas, counted again from what each rank's routers chose (`serving.routing`).

The rule is in `cpu_ep.router`: a token takes the same turn for all of its experts. So its replicas fall together more than if each were
drawn by itself, which is how a replay with the choice `wrr` has it.
"""

import numpy as np

from grace_moe.engines import SlotMap
from grace_moe.topology import Topology
from serving.job import Outcome

MULTIPLIER = 2654435769
"""By which vLLM hashes the place of a token in its forward pass."""


def copies(served: Outcome, slots: SlotMap, topology: Topology) -> list[int]:
    """`[layers]` (token, other node) copies, over all ranks."""
    replicas, counts, node = slots.logical_to_physical_map(), slots.logical_replica_count(), topology.node_of_device
    found = np.zeros(len(slots.layer_ids), dtype=int)
    for rank, seen in enumerate(served.ranks):
        place = np.concatenate([np.arange(number) for number in seen["passes"]])  # of each token in its forward pass
        for layer, experts in enumerate(np.array(seen["experts"])):
            turn = (place * MULTIPLIER & 0xFFFFFFFF)[:, None] % counts[layer][experts]
            nodes = node[replicas[layer][experts, turn] // slots.slots_per_rank]
            reached = (nodes[:, :, None] == np.arange(topology.num_nodes)).any(axis=1)
            found[layer] += reached.sum() - reached[:, node[rank]].sum()
    return found.tolist()
