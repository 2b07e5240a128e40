"""Following traffic by loads alone: what is told, how a layer is levelled, and what is decided."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from grace_moe.adapt import AdaptOptions, DecisionOptions, MonitorOptions, Prices
from grace_moe.adapt.by_counts import LoadAdapter, LoadMonitor, change_of_loads, decide_by_counts
from grace_moe.adapt.by_counts.levelling import levelled, shares_of
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import LayerPlacement, Placement, difference, even_weights
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile

TOPOLOGY = Topology.parse("2x2")
LAYERS, EXPERTS, TOP_K, PAIRS = 3, 16, 2, 4096
PRICES = Prices(move=100.0, local_move=10.0)


def domain(seed):
    """`[L, E]` shares of the load, the hottest expert with some five times the mean."""
    return np.random.default_rng(seed).dirichlet(np.full(EXPERTS, 0.7), size=LAYERS)


def draws(shares, steps, seed):
    """Loads of steps."""
    return np.random.default_rng(seed).multinomial(PAIRS, np.broadcast_to(shares, (steps, *shares.shape)))


HOME, AWAY = domain(1), domain(2)
PROFILE = LoadProfile(loads=draws(HOME, 30, 9).sum(axis=0), layer_ids=(0, 1, 2))
PLAN = plan(PROFILE, TOPOLOGY, "eplb", slots_per_device=5)


def busiest(placement, shares):
    """Over the mean, of each layer."""
    devices = np.stack([row @ shares_of(layer, 4) for row, layer in zip(shares, placement.layers, strict=True)])
    return devices.max(axis=1) / devices.mean(axis=1)


def test_a_monitor_keeps_the_last_steps():
    monitor = LoadMonitor(range(LAYERS), EXPERTS, TOP_K, steps=4)
    steps = draws(HOME, 6, 0)
    for step in steps:
        monitor.observe(step)
    assert (monitor.sample() == steps[2:]).all()
    assert (monitor.sample(since=5) == steps[5:]).all()
    assert monitor.tokens_per_step == PAIRS / TOP_K
    assert monitor.memory_bytes == 4 * LAYERS * EXPERTS * 4
    with pytest.raises(MismatchError, match=r"watches \[3, 16\]"):
        monitor.observe(steps[0, :2])
    with pytest.raises(UsageError, match="steps 0"):
        LoadMonitor((0,), 4, 2, steps=0)


def test_steady_loads_are_no_change_as_often_as_is_said():
    chances = []
    for seed in range(200):
        steps = draws(HOME, 110, seed)
        chances.append(change_of_loads(PROFILE.loads[None], steps, 10).chance)
        chances.append(change_of_loads(draws(HOME, 100, seed + 1000), steps, 10).chance)
    assert min(chances) > 1e-5
    assert np.mean(np.array(chances) < 0.05) < 0.1


def test_other_loads_are_a_change_in_a_few_steps():
    steps = np.concatenate([draws(HOME, 105, 0), draws(AWAY, 5, 1)])
    found = change_of_loads(steps[:100], steps, 10)
    assert found.chance < 1e-6
    assert found.distance > 10 * found.expected
    assert len(found.by_layer) == LAYERS
    assert (found.compared, found.unit) == ((100, 10), "steps")


def test_too_few_steps_tell_nothing():
    steps = np.concatenate([draws(HOME, 50, 0), draws(AWAY, 10, 1)])
    assert change_of_loads(PROFILE.loads[None], steps, 10).chance == 1.0
    assert change_of_loads(PROFILE.loads[None], np.zeros((100, LAYERS, EXPERTS), int), 10).chance == 1.0


def least_peak(holds, loads, even):
    """By linear programming: the least that the busiest device can have, over the mean."""
    cells = np.argwhere(holds)
    equal = np.zeros((len(loads), len(cells) + 1))
    equal[cells[:, 0], np.arange(len(cells))] = 1
    most = np.zeros((len(even), len(cells) + 1))
    most[cells[:, 1], np.arange(len(cells))] = 1 / even[cells[:, 1]]
    most[:, -1] = -1
    price = np.append(np.zeros(len(cells)), 1.0)
    return linprog(price, A_ub=most, b_ub=np.zeros(len(even)), A_eq=equal, b_eq=loads / loads.sum()).fun


@given(seed=st.integers(0, 2**20), speeds=st.booleans())
@settings(max_examples=40)
def test_every_stage_of_levelling_is_whole_and_as_even_as_its_replicas_can_be(seed, speeds):
    random = np.random.default_rng(seed)
    topology = Topology.parse("2x2")
    if speeds:
        slow = replace(topology.nodes[0], devices=tuple(replace(d, relative_speed=0.5) for d in topology.nodes[0].devices))
        topology = replace(topology, nodes=(slow, topology.nodes[1]))
    rows = tuple(tuple(random.permutation(4)[: random.integers(1, 4)].tolist()) for _ in range(8))
    layer = LayerPlacement(layer_id=0, devices_of_expert=rows, replica_weights=even_weights(rows))
    loads = random.integers(0, 50, size=8).astype(float) + (np.arange(8) == 0)
    even = topology.relative_speed / topology.relative_speed.sum()
    slots = np.bincount(np.concatenate(rows), minlength=4)
    stages = list(levelled(layer, topology, loads, most_moves=6))
    before = shares_of(layer, 4) > 0
    node = topology.node_of_device
    peaks, uneven = [], []
    for stage in stages:
        assert (stage.holds.sum(axis=0) == slots).all()
        assert stage.shares.sum(axis=1) == pytest.approx(np.ones(8))
        assert (stage.shares[~stage.holds] == 0).all()
        come = np.argwhere(stage.holds & ~before)
        assert len(come) == stage.moved <= 6
        assert sum(not before[expert, node == node[device]].any() for expert, device in come) == stage.from_other_nodes
        relative = loads @ stage.shares / even / loads.sum()
        peaks.append(relative.max())
        uneven.append((relative**4).sum())
    for peak, stage in ((peaks[0], stages[0]), (peaks[-1], stages[-1])):
        assert peak == pytest.approx(least_peak(stage.holds, loads, even), abs=0.01)
    assert stages[0].moved == 0
    assert peaks[0] <= (loads @ shares_of(layer, 4) / even).max() / loads.sum() + 1e-9
    assert (np.diff(uneven) < 0).all(), "an exchange that turns out to bring nothing ends the way"


def test_loads_as_planned_for_move_nothing():
    decision = decide_by_counts(PLAN, draws(HOME, 40, 3), DecisionOptions(prices=Prices()))
    assert decision.moved == 0


def test_other_loads_move_what_pays_and_no_more_than_the_budget():
    steps = draws(AWAY, 40, 3)
    options = DecisionOptions(prices=PRICES, budget=0.2)
    decision = decide_by_counts(PLAN, steps, options)
    assert decision.placement is not None
    assert "by counts alone" in decision.reason
    assert "copies themselves are unknown" in decision.reason
    assert decision.gain.mean >= decision.gain.low > decision.cost
    assert 0 < decision.moved <= 0.2 * 60
    moves = difference(decision.placement, PLAN)
    assert (decision.moved, decision.from_other_nodes) == (moves.moved, int(moves.from_other_nodes.sum()))
    assert decision.balance == pytest.approx(busiest(decision.placement, AWAY).mean(), abs=0.05)
    saved = busiest(PLAN, AWAY).mean() - busiest(decision.placement, AWAY).mean()
    assert decision.gain.mean == pytest.approx(saved, abs=0.05)
    assert decide_by_counts(PLAN, steps, options) == decision
    changed = [new != old for new, old in zip(decision.placement.layers, PLAN.layers, strict=True)]
    assert sorted(decision.first) == np.flatnonzero(changed).tolist()
    assert decide_by_counts(PLAN, steps, replace(options, budget=1.0)).gain.mean >= decision.gain.mean


def test_where_moves_are_dear_weights_alone_change():
    dear = DecisionOptions(prices=Prices(move=1e12, local_move=1e12))
    decision = decide_by_counts(PLAN, draws(AWAY, 40, 3), dear)
    assert decision.moved == 0
    assert decision.placement is not None
    assert difference(decision.placement, PLAN).moved == 0
    assert busiest(decision.placement, AWAY).mean() < busiest(PLAN, AWAY).mean()
    assert decision.gain_left > 0


def test_moves_come_from_the_own_node_where_they_are_cheaper():
    cheap = decide_by_counts(PLAN, draws(AWAY, 40, 3), DecisionOptions(prices=Prices(move=1e12, local_move=1.0), budget=1.0))
    assert cheap.moved > 0
    assert cheap.from_other_nodes == 0


def test_what_can_not_be_decided_is_refused():
    with pytest.raises(UsageError, match="give 2 or more"):
        decide_by_counts(PLAN, draws(AWAY, 1, 3), DecisionOptions())
    near = replace(PLAN, replica_choice="tar")
    with pytest.raises(UsageError, match="replica_choice tar: by counts"):
        decide_by_counts(near, draws(AWAY, 4, 3), DecisionOptions())
    with pytest.raises(UsageError, match="drawn by weight"):
        LoadAdapter(near, PROFILE, top_k=TOP_K)
    for options in (
        AdaptOptions(decision=DecisionOptions(effort=0.5)),
        AdaptOptions(decision=DecisionOptions(work=1)),
        AdaptOptions(monitor=MonitorOptions(capacity=10)),
        AdaptOptions(harm=0.01),
    ):
        with pytest.raises(UsageError, match=r"leave (them|it) out"):
            LoadAdapter(PLAN, PROFILE, top_k=TOP_K, options=options)


def serve(adapter, steps):
    """The steps of all decisions; what is decided serves at once."""
    decided = []
    for step in steps:
        adapter.monitor.observe(step)
        decision = adapter.look()
        if decision is not None:
            decided.append(adapter.monitor.step)
            adapter.serving = decision.placement or adapter.serving
    return decided


def test_the_adapter_looks_again_as_evidence_grows_and_keeps_to_its_budget():
    options = AdaptOptions(decision=DecisionOptions(prices=PRICES, budget=0.25))
    adapter = LoadAdapter(PLAN, PROFILE, top_k=TOP_K, options=options)
    assert serve(adapter, draws(HOME, 150, 0)) == []
    decided = serve(adapter, draws(AWAY, 200, 1))
    assert 150 < decided[0] <= 160
    assert np.diff(decided).tolist() == [10, 20, 40, 80]
    moves = difference(adapter.serving, PLAN)
    assert 0 < moves.moved <= 0.25 * moves.copies
    assert busiest(adapter.serving, AWAY).mean() < 0.7 + 0.3 * busiest(PLAN, AWAY).mean()
    assert serve(adapter, draws(AWAY, 100, 2)) == []


@pytest.mark.parametrize("away", [60, 100, 200])  # after 60 steps, those before the change tell how far steps differ
def test_traffic_that_turns_back_is_told_before_the_next_look_and_after_the_last(away):
    adapter = LoadAdapter(PLAN, PROFILE, top_k=TOP_K, options=AdaptOptions(decision=DecisionOptions(prices=PRICES, budget=0.25)))
    serve(adapter, draws(HOME, 150, 0))
    decided = serve(adapter, draws(AWAY, away, 1))
    assert 150 < decided[0] <= 160
    suited = busiest(adapter.serving, HOME).mean()
    back = serve(adapter, draws(HOME, 60, 2))
    assert 0 < back[0] - 150 - away <= 20
    assert busiest(adapter.serving, HOME).mean() < 0.7 + 0.3 * suited  # planned for alone, not with what is remembered
    moved = sum(look.decision.moved for look in adapter.looks if look.decision.placement is not None)
    changes = 1 if away < 160 else 2  # that have a budget: the last look comes 160 steps after the first change
    assert moved <= changes * 0.25 * int(PLAN.slots_per_device().sum())


def test_a_placement_by_weight_of_each_layer_is_taken():
    layers = tuple(replace(layer, replica_choice="wrr") for layer in PLAN.layers)
    own: Placement = replace(PLAN, layers=layers, replica_choice="tar")
    assert decide_by_counts(own, draws(AWAY, 10, 3), DecisionOptions(prices=PRICES)).placement is not None
