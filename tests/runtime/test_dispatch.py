"""The pieces of the dispatch that need no other rank."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.choice import choice_table
from grace_moe.cost.wire import WireFormat
from grace_moe.placement import REPLICA_CHOICES
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.route import layer_routes
from grace_moe.runtime.dispatch.rows import add_rows, must_reach
from grace_moe.runtime.dispatch.wire_rows import from_wire, to_wire
from grace_moe.topology import Topology

from .conftest import EXPERTS, placement_of, scattered_with_replicas
from .reference import reference_moe


@given(
    rows=st.integers(0, 7),
    hidden=st.sampled_from([1, 3, 8]),
    top_k=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_from_wire_is_the_inverse_of_to_wire(rows, hidden, top_k, dtype):
    dtype = getattr(torch, dtype)
    states = torch.randn(rows, hidden).to(dtype)
    slots, weights = torch.randint(-1, 32_767, (rows, top_k)), torch.rand(rows, top_k)
    packed = to_wire(states, slots, weights)
    assert packed.shape == (rows, WireFormat(hidden_size=hidden, itemsize=states.element_size(), top_k=top_k).dispatch_row_bytes)
    for got, want in zip(from_wire(packed, dtype, top_k), (states, slots, weights), strict=True):
        assert torch.equal(got, want)


def test_to_wire_takes_each_row_from_its_token():
    """From hidden states that stand in wider rows, too, as those do that `from_wire` leaves in place."""
    wide, slots, weights = torch.randn(3, 6), torch.tensor([[1], [2], [-1], [0]]), torch.rand(3, 1)
    states, token = wide[:, :4], torch.tensor([2, 0, 0, 1])
    assert torch.equal(to_wire(states, slots, weights, token), to_wire(states[token], slots, weights[token]))
    got, _, _ = from_wire(to_wire(states, slots[:3].expand(3, 2), weights.expand(3, 2)), torch.float32, 2)
    assert got.stride(0) == 4 + 3  # in place: 4 states, 2 slots and 2 weights make 7 words
    assert torch.equal(to_wire(got, slots, weights, token), to_wire(states, slots, weights, token))


def test_must_reach_by_hand():
    """Three tokens, three devices: {0, 2}, {1}, nothing."""
    reached = must_reach(torch.tensor([[0, 2, 2], [1, 1, -1], [-1, -1, -1]]), 3)
    assert reached.int().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert must_reach(torch.zeros((0, 2), dtype=torch.int64), 3).shape == (3, 0)


def test_add_rows_by_hand():
    rows = torch.tensor([[1.0], [2.0], [4.0]])
    assert add_rows(rows, torch.tensor([1, 1, 0]), 3).tolist() == [[4.0], [3.0], [0.0]]
    assert add_rows(rows, torch.tensor([1, 1, 0]), 3, (rows[:2], torch.tensor([2, 0]))).tolist() == [[6.0], [3.0], [1.0]]
    assert add_rows(rows.to(torch.bfloat16), torch.tensor([0, 0, 0]), 1).dtype == torch.bfloat16


def test_rail_peers():
    regular = Topology.parse("3x4")
    assert regular.rail_peers[5].tolist() == [1, 5, 9]
    uneven = Topology.from_dict({"nodes": [{"devices": [{}] * 3}, {"devices": [{}] * 2}]})
    assert uneven.rail_peers[:, 1].tolist() == [3, 4, 3, 3, 4]
    assert uneven.rail_peers[:, 0].tolist() == [0, 1, 2, 0, 1]


def test_meter_counts_by_tier_and_not_what_stays():
    meter = TrafficMeter(topology=Topology.parse("2x2"), rank=1)
    meter.count(range(4), [10, 100, 1, 2])
    assert (meter.intra_node_bytes, meter.cross_node_bytes) == (10, 3)
    meter.reset()
    assert meter.sent.tolist() == [0, 0, 0, 0]


@given(seed=st.integers(0, 2**31), policy=st.sampled_from(REPLICA_CHOICES), shape=st.sampled_from(["2x2", "4x1", "9x1"]))
def test_torch_and_numpy_choose_the_same_replicas(seed, policy, shape):
    placement = placement_of(shape, scattered_with_replicas(4))
    table = choice_table(placement.layers[0], placement.topology, policy)
    generator = np.random.default_rng(seed)
    ids, sources = generator.integers(-1, EXPERTS, (20, 4)), generator.integers(0, 4, 20)
    ours = table.choose(3, ids, sources, np.arange(20), seed=seed)
    theirs = table.convert(torch.from_numpy).choose(3, torch.from_numpy(ids), torch.from_numpy(sources), torch.arange(20), seed=seed)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert ((ours >= 0) == (ids >= 0)).all()


def test_routes_name_the_slot_on_the_chosen_device():
    placement = placement_of("2x2", scattered_with_replicas(4))
    ids = torch.arange(EXPERTS)[:, None]
    for rank in range(4):
        route = layer_routes(placement, rank, seed=0, device=torch.device("cpu"))[0]
        devices = route.devices_of(ids, first_token=0)
        slots = route.slots_of(devices, ids)
        for expert in range(EXPERTS):
            assert placement.experts_of_device(0)[devices[expert, 0]][slots[expert, 0]] == expert
            hosts = placement.layers[0].devices_of_expert[expert]
            assert devices[expert, 0] == rank or rank not in hosts  # TAR: own replica first
            same_node = [d for d in hosts if d // 2 == rank // 2]
            assert not same_node or devices[expert, 0] // 2 == rank // 2


def test_reference_by_hand():
    """Expert e multiplies by e + 1: token 1.0 with experts 0 and 2 at weights 0.5 and 0.25 gives 0.5 + 0.75."""
    out = reference_moe(
        lambda hidden, ids, weights: hidden * (ids + 1) * weights,
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([[0, 2], [1, -1]]),
        torch.tensor([[0.5, 0.25], [1.0, 9.0]]),
    )
    assert out.tolist() == [[1.25], [4.0]]
