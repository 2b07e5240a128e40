from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Move, Stage, stages_of
from grace_moe.placement import LayerPlacement, Placement, difference, even_weights
from grace_moe.topology import Topology

TOPOLOGY = Topology.parse("2x2")


def placement(*layers):
    return Placement(
        topology=TOPOLOGY,
        num_experts=len(layers[0]),
        layers=tuple(
            LayerPlacement(layer_id=n, devices_of_expert=rows, replica_weights=even_weights(rows)) for n, rows in enumerate(layers)
        ),
    )


@st.composite
def placements(draw):
    experts = draw(st.integers(1, 6))
    devices = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(tuple)
    rows = st.lists(devices, min_size=experts, max_size=experts).map(tuple)
    layers = draw(st.integers(1, 3))
    return tuple(placement(*(draw(rows) for _ in range(layers))) for _ in range(2))


@given(placements())
def test_every_copy_arrives_once_from_a_device_that_has_it(pair):
    new, old = pair
    moves = [move for stage in stages_of(new, old) for moves in stage.rounds for move in moves]
    wanted = {
        (layer, expert, device)
        for layer, (after, before) in enumerate(zip(new.layers, old.layers, strict=True))
        for expert in range(new.num_experts)
        for device in set(after.devices_of_expert[expert]) - set(before.devices_of_expert[expert])
    }
    assert {(move.layer, move.expert, move.target) for move in moves} == wanted
    assert len(moves) == len(wanted) == difference(new, old).moved
    node = TOPOLOGY.node_of_device
    for move in moves:
        held = old.layers[move.layer].devices_of_expert[move.expert]
        assert move.source in held
        if any(node[device] == node[move.target] for device in held):
            assert node[move.source] == node[move.target]


@given(placements())
def test_one_peer_a_device_a_round_and_a_layer_in_one_stage(pair):
    new, old = pair
    stages = stages_of(new, old)
    for stage in stages:
        for moves in stage.rounds:
            assert len({move.source for move in moves}) == len(moves) == len({move.target for move in moves})
        assert tuple(sorted({move.layer for moves in stage.rounds for move in moves})) == stage.layers
    assert sorted(layer for stage in stages for layer in stage.layers) == np.flatnonzero(difference(new, old).loads.any(axis=1)).tolist()


@given(placements())
def test_no_stage_is_longer_than_a_layer_alone_may_be(pair):
    """Where a device sends or receives at most n experts of a layer, the layer has at most 2n - 1 rounds: a move meets 2n - 2 others."""
    stages = stages_of(*pair)
    ends = Counter(
        (move.layer, end) for s in stages for moves in s.rounds for move in moves for end in (("from", move.source), ("to", move.target))
    )
    assert max((len(stage.rounds) for stage in stages), default=0) <= max(0, 2 * max(ends.values(), default=0) - 1)


def test_by_hand():
    """Expert 0 goes from device 0 to 1 and 2; the second copy takes a round of its own, as device 0 sends one thing at a time."""
    assert stages_of(placement(((1, 2), (3,))), placement(((0,), (3,)))) == [
        Stage(layers=(0,), rounds=((Move(layer=0, expert=0, source=0, target=1),), (Move(layer=0, expert=0, source=0, target=2),)))
    ]


def test_layers_whose_devices_are_free_share_a_round():
    """Devices 0 and 1 exchange experts in layers 0 and 1, devices 2 and 3 in layer 2: the first and the last go together."""
    old = placement(((0,), (1,), (2,), (3,)), ((0,), (1,), (2,), (3,)), ((0,), (1,), (2,), (3,)))
    new = placement(((1,), (0,), (2,), (3,)), ((1,), (0,), (2,), (3,)), ((0,), (1,), (3,), (2,)))
    first, second = stages_of(new, old)
    assert (first.layers, second.layers) == ((0, 2), (1,))
    assert [[(move.source, move.target) for move in moves] for moves in first.rounds] == [[(0, 1), (1, 0), (2, 3), (3, 2)]]
    assert [stage.layers for stage in stages_of(new, old, first=[1])] == [(1, 2), (0,)]
