"""Invariants hold however a placement is made."""

import math

import pytest

from grace_moe.errors import PlacementError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology


@pytest.mark.parametrize("layer_id", [-1, 100_000])
def test_layer_numbers_that_the_loader_refuses_are_refused_in_python_too(layer_id):
    layer = LayerPlacement(layer_id=layer_id, devices_of_expert=((0,),), replica_weights=((1.0,),))
    with pytest.raises(PlacementError, match=r"its number is not in 0\.\.99999; give the model's own number of the layer"):
        Placement(topology=Topology.parse("1x1"), num_experts=1, layers=(layer,))


@pytest.mark.parametrize("field", ["replica_weights", "decode_weights"])
@pytest.mark.parametrize("weights", [(math.nan, 1.0), (math.inf, 0.0), (2.0, -1.0), (0.5,), (0.3, 0.3)])
def test_weights_are_shares_in_python_too(field, weights):
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1),), **{"replica_weights": ((0.5, 0.5),), field: (weights,)})
    with pytest.raises(PlacementError, match=rf"layer 0: {field}\[0\]"):
        Placement(topology=Topology.parse("1x2"), num_experts=1, layers=(layer,))
