"""The energy that a search carries along is the energy of what it ends with, computed from nothing."""

import numpy as np
import pytest

from grace_moe.placement import even_weights
from grace_moe.planning.grace.search import devices, gathering, nodes
from grace_moe.planning.grace.search.annealing import Cooling
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import SearchOptions, node_state
from grace_moe.planning.grace.search.node_state import energy as node_energy
from grace_moe.planning.grace.uncertainty import load_shares
from grace_moe.topology import Topology

COOLING = Cooling(proposals=3000, steps=2999, hot=0.01, cold=1e-4)


@pytest.fixture(scope="module")
def ids():
    generator = np.random.default_rng(0)
    chosen = np.stack([generator.permutation(12)[:3] for _ in range(200)])
    chosen[generator.random(chosen.shape) < 0.1] = -1
    return chosen


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_nodes(ids, pinned, moves):
    share, noise = load_shares(ids, np.arange(200) // 5, 12)
    room = NodeLimits(slots=np.array([6, 6, 6]), devices=np.array([2, 2, 2]), capacity=np.full(3, 1 / 3))
    pins = np.arange(200) % 4 - 1 if pinned else None
    held = np.roll(seed_copies(share, room), 1, axis=1)
    options = SearchOptions(move_price=0.02, held=held) if moves else SearchOptions()
    first = node_state(ids, share, noise, room, options, seed_copies(share, room), pins)
    start = node_energy(first)
    last, best = nodes._search(first, start, COOLING, 1)
    for copies, found in ((first.contents.copies, last), (first.best.reshape(3, 12), best)):
        again = node_state(ids, share, noise, room, options, copies, pins)
        assert node_energy(again) == pytest.approx(found, rel=1e-9)
    assert best < start


def test_devices(ids):
    noise = load_shares(ids, np.arange(200) // 5, 12)[1] * 9
    load = np.bincount(ids[ids >= 0], minlength=12).astype(float)
    node = devices.NodeShare(copies=np.ones(12, np.int64), load=load, share_here=np.ones(12), rows=ids, fair=np.full(3, load.sum() / 3))
    options = devices.PackingOptions(imbalance_price=1.0)
    state = devices.device_state(node, np.arange(12).reshape(3, 4), noise, options)
    start = devices.energy(state)
    last, best = devices._search(state, start, COOLING, 1)
    for slot, found in ((state.slot, last), (state.best.reshape(3, 4), best)):
        assert devices.energy(devices.device_state(node, slot, noise, options)) == pytest.approx(found, rel=1e-9)
    assert best < start


def test_gathering(ids):
    topology = Topology.parse("3x2")
    rows = tuple((e % 6, (e + 1) % 6) for e in range(12))
    held = np.zeros((6, 12))
    for expert, (pair, weights) in enumerate(zip(rows, even_weights(rows), strict=True)):
        held[list(pair), expert] = weights
    state = gathering.gathering_state(held, topology, ids)
    start = gathering.energy(state)
    last, best = gathering._search(state, start, COOLING, 1)
    for place, found in ((state.solution, last), (state.best, best)):
        moved = np.empty_like(held)
        moved[place] = held
        assert gathering.energy(gathering.gathering_state(moved, topology, ids)) == pytest.approx(found, rel=1e-9)
    assert best < start


@pytest.mark.parametrize("number", [63, 64, 72])
def test_devices_of_a_large_node(number):
    """More devices than an integer has bits, such as those of a GB200 NVL72."""
    generator = np.random.default_rng(number)
    experts = 2 * number
    rows = np.stack([generator.permutation(experts)[:4] for _ in range(300)])
    rows[generator.random(rows.shape) < 0.1] = -1
    load = np.bincount(rows[rows >= 0], minlength=experts).astype(float)
    fair = np.full(number, load.sum() / number)
    node = devices.NodeShare(copies=np.ones(experts, np.int64), load=load, share_here=np.ones(experts), rows=rows, fair=fair)
    noise, options = np.zeros((experts, experts)), devices.PackingOptions(imbalance_price=0.01)
    first = np.arange(experts).reshape(number, 2)
    state = devices.device_state(node, first, noise, options)
    start = devices.energy(state)
    reached = [len(set((row[row >= 0] // 2).tolist())) for row in rows]
    assert start == pytest.approx(np.mean(reached) + 0.01 * state.over.sum())
    last, best = devices._search(state, start, COOLING, 1)
    for slot, found in ((state.slot, last), (state.best.reshape(first.shape), best)):
        assert devices.energy(devices.device_state(node, slot, noise, options)) == pytest.approx(found, rel=1e-9)
    assert best < start
