"""Following a running engine's loads: slots stay, experts are not lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import equalise
from grace_moe.engines.equaliser import rebalance
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from tests.engines.samples import placements


@given(placements(), st.data())
def test_rebalancing_keeps_slots_and_experts(placed, data):
    equal = equalise(placed).placement
    loads = np.array(
        [data.draw(st.lists(st.integers(0, 99), min_size=placed.num_experts, max_size=placed.num_experts)) for _ in placed.layers]
    )
    again = rebalance(equal, loads)
    assert (again.slots_per_device() == equal.slots_per_device()).all()
    assert rebalance(equal, loads) == again


def test_rebalancing_by_hand():
    """1x2, three slots each: both hold 0 and 1, and 2 has 80 of 100. Devices compute 85.5 and 14.5. By hand: 2 in the slot of 0 on device 1 makes
    50.5 and 49.5, in that of 1 it makes 45.5 and 54.5."""
    devices = ((0, 1), (0, 1), (0,), (1,))
    layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    before = Placement(topology=Topology.parse("1x2"), num_experts=4, layers=(layer,))
    after = rebalance(before, np.array([[10, 1, 80, 9]])).layers[0].devices_of_expert
    assert after == ((0,), (0, 1), (0, 1), (1,))
