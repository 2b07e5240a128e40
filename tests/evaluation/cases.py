"""Small clusters, placements and traces, written out or drawn."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grace_moe.placement import REPLICA_CHOICES, LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace


def topology_of(sizes, speeds=None) -> Topology:
    """Nodes of these sizes; devices of these speeds."""
    speeds = iter([1.0] * sum(sizes) if speeds is None else speeds)
    return Topology.from_dict({"nodes": [{"devices": [{"relative_speed": next(speeds)} for _ in range(n)]} for n in sizes]})


def placement_of(topology, *layers, replica_choice="tar", layer_ids=None) -> Placement:
    rows = [tuple(tuple(devices) for devices in layer) for layer in layers]
    ids = range(len(rows)) if layer_ids is None else layer_ids
    return Placement(
        topology=topology,
        num_experts=len(rows[0]),
        layers=tuple(
            LayerPlacement(layer_id=i, devices_of_expert=r, replica_weights=even_weights(r)) for i, r in zip(ids, rows, strict=True)
        ),
        replica_choice=replica_choice,
    )


def trace_of(ids, experts, **rest) -> RoutingTrace:
    ids = np.array(ids, dtype=np.int16)
    return RoutingTrace(topk_ids=ids, num_experts=experts, layer_ids=tuple(range(ids.shape[1])), source="t", **rest)


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    devices, experts, layers = sum(sizes), draw(st.integers(1, 6)), draw(st.integers(1, 2))
    topology = topology_of(sizes, draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=devices, max_size=devices)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    placed = []
    for layer_id in draw(st.lists(st.integers(0, 60), min_size=layers, max_size=layers, unique=True)):
        rows = tuple(tuple(generator.permutation(devices)[: generator.integers(1, devices + 1)].tolist()) for _ in range(experts))
        raw = [generator.random(len(row)) + 0.01 for row in rows]
        weights = tuple(tuple((w / w.sum()).tolist()) for w in raw)
        in_decode = [w * (generator.random(len(w)) < 0.5) for w in raw]
        in_decode = tuple(tuple((w / w.sum()).tolist()) if w.any() else own for w, own in zip(in_decode, weights, strict=True))
        placed.append(
            LayerPlacement(
                layer_id=layer_id,
                devices_of_expert=rows,
                replica_weights=weights,
                decode_weights=in_decode if draw(st.booleans()) else (),
            )
        )
    placement = Placement(
        topology=topology, num_experts=experts, layers=tuple(placed), replica_choice=draw(st.sampled_from(REPLICA_CHOICES))
    )
    tokens, k = draw(st.integers(0, 12)), draw(st.integers(1, experts))
    ids = np.array([[generator.permutation(experts)[:k] for _ in range(layers)] for _ in range(tokens)], dtype=np.int16).reshape(
        tokens, layers, k
    )
    ids[generator.random(ids.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -1
    if draw(st.booleans()):
        ids[:, 0] = -1  # a layer that was not recorded
    trace = RoutingTrace(
        topk_ids=ids,
        num_experts=experts,
        layer_ids=placement.layer_ids,
        request_ids=draw(st.none() | hnp.arrays(np.int32, tokens, elements=st.integers(-3, 5))),
        phase=draw(st.none() | hnp.arrays(np.uint8, tokens, elements=st.integers(0, 1))),
    )
    return placement, trace, draw(st.integers(0, 3))
