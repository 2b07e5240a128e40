import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Move, rounds_of
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
    rounds = rounds_of(new, old)
    moves = [move for moves in rounds for move in moves]
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
def test_one_peer_a_device_a_round_layer_by_layer(pair):
    rounds = rounds_of(*pair)
    for moves in rounds:
        assert len({move.source for move in moves}) == len(moves) == len({move.target for move in moves})
        assert len({move.layer for move in moves}) == 1
    assert (np.diff([moves[0].layer for moves in rounds]) >= 0).all()


def test_by_hand():
    """Expert 0 goes from device 0 to 1 and 2; the second copy takes a round of its own, as device 0 sends one thing at a time."""
    assert rounds_of(placement(((1, 2), (3,))), placement(((0,), (3,)))) == [
        [Move(layer=0, expert=0, source=0, target=1)],
        [Move(layer=0, expert=0, source=0, target=2)],
    ]
