"""Placement: what derives from it."""

import numpy as np
from hypothesis import given, settings

from tests.placement.samples import HAND, placements


def test_what_derives_from_it_by_hand():
    """Layer 0 holds seven copies of four experts (device 1: experts 1 and 3), layer 1 one of each."""
    assert HAND.experts_of_device(0) == ((0, 3), (1, 3), (2, 3), (1,))
    assert HAND.slots_per_device().tolist() == [[2, 2, 2, 1], [1, 1, 1, 1]]
    assert HAND.slots_total_over_experts == (7 + 4) / 2 / 4
    assert HAND.physical_to_logical_map().tolist() == [[0, 3, 1, 3, 2, 3, 1, -1], [3, -1, 2, -1, 1, -1, 0, -1]]
    assert HAND.physical_to_logical_map().dtype == np.int32
    assert HAND.layer_ids == (0, 1)


@settings(max_examples=40)
@given(placement=placements())
def test_every_copy_is_in_exactly_one_slot(placement):
    slots = placement.physical_to_logical_map().reshape(len(placement.layers), placement.topology.num_devices, -1)
    for layer, of_device in zip(placement.layers, slots, strict=True):
        found = {(int(e), d) for d, experts in enumerate(of_device) for e in experts if e >= 0}
        assert found == {(e, d) for e, devices in enumerate(layer.devices_of_expert) for d in devices}
        assert (of_device >= 0).sum() == sum(map(len, layer.devices_of_expert))
