"""Placements and traces that the engines' tests draw."""

import numpy as np
from hypothesis import strategies as st

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology


@st.composite
def placements(draw, most_experts=12):
    """Any valid placement: unequal slots, replicas anywhere, layer numbers with gaps."""
    topology = Topology.parse(draw(st.sampled_from(["1x1", "1x3", "2x1", "2x2", "3x2", "2x4"])))
    experts = draw(st.integers(1, most_experts))
    layer_ids = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=3)))
    layers = []
    for layer_id in layer_ids:
        devices = tuple(
            tuple(draw(st.lists(st.integers(0, topology.num_devices - 1), min_size=1, max_size=3, unique=True))) for _ in range(experts)
        )
        layers.append(LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=even_weights(devices)))
    return Placement(topology=topology, num_experts=experts, layers=tuple(layers), model="any")


def sets(placement):
    """Which devices hold each expert, by layer: all that an engine's map keeps."""
    return [[set(devices) for devices in layer.devices_of_expert] for layer in placement.layers]


def chosen(rng, tokens, layers, experts, k):
    """`[tokens, layers, k]` distinct experts."""
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k]
