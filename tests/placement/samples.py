"""Placements by hand, and drawn."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from grace_moe.placement import REPLICA_CHOICES, LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology


def placement_of(*layers, shape="2x2", **rest) -> Placement:
    """A placement of rows of devices, one list a layer; weights even."""
    rows = [tuple(tuple(devices) for devices in layer) for layer in layers]
    return Placement(
        topology=Topology.parse(shape),
        num_experts=len(rows[0]),
        layers=tuple(LayerPlacement(layer_id=i, devices_of_expert=r, replica_weights=even_weights(r)) for i, r in enumerate(rows)),
        **rest,
    )


HAND = placement_of([[0], [1, 3], [2], [2, 0, 1]], [[3], [2], [1], [0]], model="olmoe", provenance={"method": "by hand", "seed": 0})


HAND = replace(HAND, layers=(replace(HAND.layers[0], decode_weights=((1.0,), (0.0, 1.0), (1.0,), (0.25, 0.0, 0.75))), HAND.layers[1]))


@st.composite
def placements(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    devices, experts = sum(sizes), draw(st.integers(1, 5))
    layers = []
    for layer_id in draw(st.lists(st.integers(0, 99_999), min_size=1, max_size=3, unique=True)):
        hosts = [draw(st.permutations(range(devices)).map(lambda p: p[: draw(st.integers(1, devices))])) for _ in range(experts)]
        raw = [[draw(st.floats(1e-6, 1.0)) for _ in row] for row in hosts]
        only = [draw(st.integers(0, len(row) - 1)) for row in hosts]
        layers.append(
            LayerPlacement(
                layer_id=layer_id,
                devices_of_expert=tuple(map(tuple, hosts)),
                replica_weights=tuple(tuple(w / math.fsum(row) for w in row) for row in raw),
                decode_weights=tuple(tuple(float(r == o) for r in range(len(row))) for row, o in zip(hosts, only, strict=True))
                if draw(st.booleans())
                else (),
                node_prices=tuple(draw(st.floats(0, 15)) for _ in sizes) if draw(st.booleans()) else (),
                replica_choice=draw(st.sampled_from(["", *REPLICA_CHOICES])),
            )
        )
    return Placement(
        topology=Topology.from_dict({"nodes": [{"devices": [{}] * n} for n in sizes]}),
        num_experts=experts,
        layers=tuple(layers),
        model=draw(st.text(st.characters(codec="utf-8"), max_size=8)),
        replica_choice=draw(st.sampled_from(REPLICA_CHOICES)),
        provenance=draw(
            st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.none() | st.integers() | st.booleans(), max_size=3)
        ),
    )
