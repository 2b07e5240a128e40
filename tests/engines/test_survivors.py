"""A placement on the devices that are left: everything that can be kept is, and no expert is lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines.equaliser import equalise, without_devices
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Tier, Topology
from tests.engines.plans import placement


@st.composite
def placed(draw):
    """Any placement of 6 experts on 2 nodes of 2, and devices that died; one is left at least."""
    devices = tuple(tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))) for _ in range(6))
    layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    return Placement(topology=Topology.parse("2x2"), num_experts=6, layers=(layer,)), draw(st.sets(st.integers(0, 3), max_size=3))


@given(placed())
def test_replicas_on_living_devices_stay_and_every_expert_is_somewhere(case):
    before, dead = case
    after = without_devices(before, dead)  # a placement checks itself: every expert placed, shares whole
    left = [device for device in range(4) if device not in dead]
    assert after.topology.num_devices == len(left)
    assert [int(before.topology.node_of_device[d]) for d in left] == [
        sorted({d // 2 for d in left})[n] for n in after.topology.node_of_device
    ]
    for old, new in zip(before.layers[0].devices_of_expert, after.layers[0].devices_of_expert, strict=True):
        kept = [device for device in old if device not in dead]
        assert [left[d] for d in new] == kept or (not kept and len(new) == 1)
    equal = equalise(after, slots_per_device=6)
    assert (equal.placement.slots_per_device() == 6).all()


def test_an_expert_that_died_goes_to_its_node_and_weights_are_shared_anew():
    devices = ((0,), (0, 2, 3), (1,), (3,))
    layer = LayerPlacement(
        layer_id=5,
        devices_of_expert=devices,
        replica_weights=((1.0,), (0.5, 0.1, 0.4), (1.0,), (1.0,)),
        node_prices=(1.0, 2.0),
        source_costs=((0.5, 1.5),) * 4,
    )
    before = Placement(topology=Topology.parse("2x2"), num_experts=4, layers=(layer,))
    one = without_devices(before, [0]).layers[0]
    assert one.devices_of_expert == ((0,), (1, 2), (0,), (2,))  # expert 0: device 1, the other one of its node, though it holds more
    assert one.replica_weights[1] == pytest.approx((0.2, 0.8))
    node = without_devices(before, [2, 3])
    assert node.topology.shape == "1x2"
    assert (node.layers[0].devices_of_expert[3], node.layers[0].node_prices, node.layers[0].source_costs[0]) == ((1,), (1.0,), (0.5,))


def test_replicas_that_had_no_weight_share_evenly():
    weights = ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    left = without_devices(placement(weights=weights), [0])
    assert left.layers[0].replica_weights[0] == (1.0,)


def test_links_of_the_dead_are_forgotten():
    rows = tuple(tuple(float(10 * i + j + 1) for j in range(4)) for i in range(4))
    plain = Topology.parse("2x2")
    rack = Tier(name="rack", link=plain.cross_node, groups=((0, 2), (1, 3)))
    topology = replace(plain, bandwidth=rows, tiers=(rack, replace(rack, groups=((1,), (2, 3)))))
    base = placement()
    left = without_devices(Placement(topology=topology, num_experts=4, layers=base.layers), {1})
    assert [tier.groups for tier in left.topology.tiers] == [((0, 1), (2,)), ((1, 2),)]
    assert np.array(left.topology.bandwidth).tolist() == [[1, 3, 4], [21, 23, 24], [31, 33, 34]]


def test_nobody_left_is_an_error():
    with pytest.raises(UsageError, match="all 4 devices are dead"):
        without_devices(placement(), range(4))
