"""What must move from one placement to another, by hand and on random placements."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.errors import MismatchError
from grace_moe.placement import LayerPlacement, Placement, difference, even_weights
from grace_moe.topology import Topology


def placement_of(*layers, shape="2x2"):
    return Placement(
        topology=Topology.parse(shape),
        num_experts=len(layers[0]),
        layers=tuple(
            LayerPlacement(layer_id=i, devices_of_expert=devices, replica_weights=even_weights(devices)) for i, devices in enumerate(layers)
        ),
    )


def test_by_hand():
    """Expert 0 moves inside node 0, 1 gets a replica on the other node, 2 loses one, 3 stays."""
    old = placement_of(((0,), (1,), (2, 0), (3,)))
    found = difference(placement_of(((1,), (1, 2), (2,), (3,))), old)
    assert found.loads.tolist() == [[0, 1, 1, 0]]
    assert found.from_other_nodes.tolist() == [[0, 0, 1, 0]]
    assert (found.moved, found.copies, found.bytes_to_load(10)) == (2, 5, 20)
    assert difference(old, old).moved == 0


@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_loaded_is_what_is_held_and_was_not(seed):
    generator = np.random.default_rng(seed)
    new, old = (
        placement_of(*(tuple(tuple(generator.permutation(4)[: generator.integers(1, 4)].tolist()) for _ in range(5)) for _ in range(2)))
        for _ in "ab"
    )
    found = difference(new, old)
    for layer in range(2):
        for device in range(4):
            fresh = set(new.experts_of_device(layer)[device]) - set(old.experts_of_device(layer)[device])
            assert found.loads[layer, device] == len(fresh)
            mate = device ^ 1
            assert found.from_other_nodes[layer, device] == len(fresh - set(old.experts_of_device(layer)[mate]))


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (placement_of(((0,), (1,)), shape="1x4"), "topology: 2x2, but placement has 1x4"),
        (placement_of(((0,), (1,), (2,))), "num_experts: 2"),
        (placement_of(((0,), (1,)), ((0,), (1,))), "layers"),
    ],
)
def test_of_another_model_or_topology(other, field):
    with pytest.raises(MismatchError, match=field):
        difference(placement_of(((0,), (1,))), other)
