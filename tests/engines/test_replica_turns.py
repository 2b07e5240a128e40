"""Turns of near replicas: by hand, and for any placement."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import SlotMap, equalise
from grace_moe.engines.replica_turns import choices_of_rank
from grace_moe.placement import even_weights
from grace_moe.topology import Topology
from tests.engines.plans import HELD, placement
from tests.engines.samples import placements


def test_near_replicas_by_hand():
    """Layer 1: expert 0 is on devices 0 (node 0) and 3 (node 1); expert 3 on 2 and 3, with weights 3/4 and 1/4."""
    even = even_weights(placement().layers[0].devices_of_expert)
    layer = placement(weights=(*even[:3], (0.75, 0.25))).layers[0]
    row, topology = np.array(HELD[0], dtype=np.int32), Topology.parse("2x2")
    assert choices_of_rank(layer, row, topology, 0, 64) == [[0], [1], [3], [5, 5, 5, 6]]  # 2 is on 1 and 2, 1 is near; 3 is away
    assert choices_of_rank(layer, row, topology, 1, 64) == [[0], [2], [3], [5, 5, 5, 6]]
    assert choices_of_rank(layer, row, topology, 2, 64) == [[7], [1, 2], [4], [5]]
    assert choices_of_rank(layer, row, topology, 3, 64) == [[7], [1, 2], [4], [6]]


@given(placements(), st.integers(1, 64))
def test_every_choice_is_a_slot_of_the_expert_and_the_nearest(placed, width):
    placed = equalise(placed).placement
    slots, topology = SlotMap.of(placed), placed.topology
    for index, layer in enumerate(placed.layers):
        row = slots.physical_to_logical[index]
        for rank in range(topology.num_devices):
            for expert, turns in enumerate(choices_of_rank(layer, row, topology, rank, width)):
                assert 1 <= len(turns) <= width + len(layer.devices_of_expert[expert])
                devices = {slot // slots.slots_per_rank for slot in turns}
                assert all(row[slot] == expert for slot in turns)
                held = layer.devices_of_expert[expert]
                near = [d for d in held if topology.node_of_device[d] == topology.node_of_device[rank]]
                assert devices == ({rank} if rank in held else set(near or held))
