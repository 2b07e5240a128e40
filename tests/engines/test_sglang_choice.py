"""Our replica choice at SGLang's seams, on stand-ins of its map; `make contract` runs it against the package itself."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from grace_moe.choice import joint_choice_table
from grace_moe.engines import SlotMap
from grace_moe.engines.sglang.choice import Choosing, near_slots, served_layer
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology
from tests.engines.plans import EXPERTS, HELD, placement

NODES = Topology.parse("2x4")


@st.composite
def weighted(draw):
    """6 experts on 2 nodes of 4, each on 1 to 8 devices, of weights that sum to 1."""
    devices = tuple(tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))) for _ in range(6))
    weights = []
    for held in devices:
        parts = draw(st.lists(st.integers(1, 9), min_size=len(held), max_size=len(held)))
        weights.append(tuple(part / sum(parts) for part in parts))
    return LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=tuple(weights))


def row_of(layer):
    """A map of eight ranks with room for all: an expert's slots on a rank, the rest filled with what is there, or expert 0."""
    return np.array([expert if rank in devices else 0 for rank in range(8) for expert, devices in enumerate(layer.devices_of_expert)])


LONE = ((1.0,),) * 4
ON_THRESHOLDS = LayerPlacement(  # five ranks take expert 1 from the next node's devices: two of them stand just where a share ends
    layer_id=0, devices_of_expert=((0,), (0, 1, 2), (0,), (0,), (0,), (0,)), replica_weights=((1.0,), (0.1, 0.6, 0.3), *LONE)
)


@given(weighted())
@example(ON_THRESHOLDS)
def test_ranks_are_dealt_out_to_near_replicas_by_weight(layer):
    """Own replica first; ranks that have the same ones near divide among them as the weights say, to less than one rank."""
    row = row_of(layer)
    layer = served_layer(layer, row, 8)  # expert 0 is where the map has it
    taken = np.stack([near_slots(layer, row, NODES, rank) for rank in range(8)])
    assert (row[taken] == np.arange(6)).all()
    on = taken // 6
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        share = dict(zip(devices, weights, strict=True))
        near = [tuple(d for d in devices if d == r) or tuple(d for d in devices if d // 4 == r // 4) or devices for r in range(8)]
        for group in set(near):
            ranks = [r for r in range(8) if near[r] == group]
            wanted = {d: len(ranks) * share[d] / sum(share[d] for d in group) for d in group}
            assert all(abs((on[ranks, expert] == d).sum() - wanted[d]) < 1 for d in group)
            assert set(on[ranks, expert].tolist()) <= set(group)
        assert all(on[r, expert] == r for r in range(8) if r in devices)


def test_a_layer_as_it_serves_keeps_the_weights_of_what_is_where_it_was_planned():
    weights = ((0.75, 0.25), (0.5, 0.5), (0.1, 0.9), (0.2, 0.8))
    planned = placement(weights=weights).layers[0]  # ranks hold 01 12 23 30
    row = np.array([0, 1, 1, 2, 2, 3, 1, 0])  # expert 3 lost its replica on rank 3 to expert 1
    served = served_layer(planned, row, 4)
    assert served.devices_of_expert == ((0, 3), (0, 1, 3), (1, 2), (2,))
    assert served.replica_weights == ((0.75, 0.25), (1 / 3,) * 3, (0.1, 0.9), (1.0,))
    alive = served_layer(planned, row, 4, dead=(0, 3))
    assert alive.devices_of_expert == ((0, 3), (1,), (1, 2), (2,))  # nobody else has expert 0


def metadata(rows, ranks=4, device_map=True):
    rows = torch.tensor(rows)
    slots = SlotMap(
        physical_to_logical=rows.numpy().astype(np.int32), layer_ids=tuple(range(len(rows))), num_experts=EXPERTS, num_ranks=ranks
    )
    return SimpleNamespace(
        physical_to_logical_map=rows,
        physical_to_logical_map_cpu=rows.clone(),
        logical_to_rank_dispatch_physical_map=torch.from_numpy(slots.logical_to_physical_map()[:, :, 0]).long() if device_map else None,
        ep_size=ranks,
        num_layers=len(rows),
        num_physical_experts=rows.shape[1],
    )


IN_ORDER = [0, 1, 2, 3, 0, 1, 2, 3]
MAP = [IN_ORDER, HELD[0], IN_ORDER, HELD[1]]


def test_the_static_table_gets_the_near_slots_of_planned_layers(caplog):
    choosing = Choosing(planned=placement(), choice="near")
    given_map = metadata(MAP)
    before = given_map.logical_to_rank_dispatch_physical_map.clone()
    choosing.fill_table(given_map, 4, None, None, moe_ep_rank=1)
    after = given_map.logical_to_rank_dispatch_physical_map
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    for layer, planned in zip((1, 3), placement().layers, strict=True):
        assert after[layer].tolist() == near_slots(planned, np.array(MAP[layer]), placement().topology, 1).tolist()
    assert not torch.equal(after, before)
    choosing.fill_table(metadata(MAP, ranks=2), 2, None, None, moe_ep_rank=1)
    assert "2 ranks, and the plan is for 2x2" in caplog.text
    choosing.fill_table(metadata(MAP, device_map=False), 4, None, None, moe_ep_rank=1)
    assert "--ep-dispatch-algorithm is not static" in caplog.text


def joint_choosing():
    choosing = Choosing(planned=placement(), choice="joint")
    given_map = metadata(MAP)
    choosing.fill_table(given_map, 4, None, None, moe_ep_rank=2)
    choosing.follow_map(None, given_map)
    return choosing, given_map


def told(choosing, layer_id, **named):
    def original(cls, layer_id, is_draft=False):
        made = {"rank_invariant": False, "ep_dispatch_algorithm": "static"} | named
        return None if is_draft else SimpleNamespace(**made)

    return choosing.tell_layer(original, object, layer_id)


def theirs(topk_ids, info, log2phy_prob=None):
    return "theirs"


IDS = torch.tensor([[0, 1], [2, 3], [0, 3], [1, 2], [3, 1]], dtype=torch.int32)


def test_joint_choice_is_that_of_the_replay_token_by_token():
    """The draws of tokens 0, 1, ...; the second batch goes on where the first ended."""
    choosing, _ = joint_choosing()
    planned = placement().layers[0]
    info = told(choosing, 1)
    found = torch.cat([choosing.choose(theirs, IDS[:3], info), choosing.choose(theirs, IDS[3:], info)])
    table = joint_choice_table(planned, placement().topology)
    expected = table.choose(1, IDS.numpy().astype(np.int64), np.full(5, 2), np.arange(5), seed=0)
    assert found.dtype == torch.int32
    assert (found.numpy() // 2 == expected).all()
    assert (np.array(MAP[1])[found.numpy()] == IDS.numpy()).all()
    assert choosing.choose(theirs, torch.full((2, 2), -1, dtype=torch.int32), info).tolist() == [[-1, -1]] * 2


def test_joint_choice_is_theirs_where_it_is_not_ours_to_make():
    choosing, _ = joint_choosing()
    assert choosing.choose(theirs, IDS, told(choosing, 0)) == "theirs"  # a layer without a plan
    assert choosing.choose(theirs, IDS, told(choosing, 1, rank_invariant=True)) == "theirs"
    assert choosing.choose(theirs, IDS, told(choosing, 1, ep_dispatch_algorithm="dynamic"), log2phy_prob=None) == "theirs"
    assert choosing.choose(theirs, IDS, None) == "theirs"
    choosing.follow_map(None, metadata(MAP, ranks=2))
    assert choosing.choose(theirs, IDS, told(choosing, 1)) == "theirs"


def test_chunks_change_their_layers_alone_and_addresses_stay():
    choosing, given_map = joint_choosing()
    before = {layer: choosing.joint[layer].choice.slot_of_ED.clone() for layer in (1, 3)}
    where = {layer: choosing.joint[layer].choice.prefill.devices_ER.data_ptr() for layer in (1, 3)}
    new = metadata([IN_ORDER, [0, 0, 1, 1, 2, 2, 3, 3], IN_ORDER, [0, 0, 1, 1, 2, 2, 3, 3]])
    for name in ("physical_to_logical_map", "physical_to_logical_map_cpu"):
        getattr(given_map, name)[1] = getattr(new, name)[1]
    choosing.follow_update(None, given_map, new, update_layer_ids=[1])
    assert torch.equal(choosing.joint[3].choice.slot_of_ED, before[3])
    assert not torch.equal(choosing.joint[1].choice.slot_of_ED, before[1])
    assert {layer: choosing.joint[layer].choice.prefill.devices_ER.data_ptr() for layer in (1, 3)} == where
    found = choosing.choose(theirs, IDS, told(choosing, 1))
    assert (given_map.physical_to_logical_map[1][found.long()] == IDS).all()


def test_dead_ranks_are_in_no_table():
    choosing = Choosing(planned=placement(), choice="joint", dead=(3,))
    given_map = metadata([IN_ORDER, [0, 1, 1, 2, 2, 3, 0, 0], IN_ORDER, IN_ORDER])  # SGLang fills the slots of the dead with expert 0
    choosing.fill_table(given_map, 4, None, None, moe_ep_rank=2)
    choosing.follow_map(None, given_map)
    assert (given_map.logical_to_rank_dispatch_physical_map[1] < 6).all()
    assert (choosing.choose(theirs, IDS, told(choosing, 1)) < 6).all()
