"""Re-planning from the map that serves, on simulated windows: counts drawn by multinomial laws, small and large, in bursts or not."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from grace_moe.engines.equaliser import Window, replan, spread_evenly
from grace_moe.engines.live.given_maps import GivenMaps, LiveMap
from grace_moe.engines.live.live_plan import MOVES, LivePlan, plan_from_environment
from grace_moe.engines.live.replanner import BUDGET_SHARE, Measured, Replanner, Serving
from grace_moe.engines.slot_map import SlotMap
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology

TOPOLOGY = Topology.parse("2x2")
EXPERTS, LAYERS = 16, 3
DEVICES = tuple((e // 4, (e // 4 + 2) % 4) if e % 4 == 0 else (e // 4,) for e in range(EXPERTS))
"""Four experts a device, and a replica of the first of them on the other node."""
LIKELY = np.where(np.arange(EXPERTS) % 4 == 0, 2.0, 1.0)
TURNED = np.where(np.arange(EXPERTS) < 4, 6.0, 1.0)
"""How often experts are chosen: as the map has them even, and where device 0 would be busiest by far."""
BUDGET = 2


def serving():
    layers = tuple(LayerPlacement(layer_id=i, devices_of_expert=DEVICES, replica_weights=even_weights(DEVICES)) for i in range(LAYERS))
    return Placement(topology=TOPOLOGY, num_experts=EXPERTS, layers=layers)


def drawn(generator, likely, tokens, burst):
    """`[layers, experts]` choices; in bursts, requests of a hundred tokens have their own likes."""
    counts = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    parts = max(1, tokens // 100) if burst else 1
    for layer in range(LAYERS):
        for _ in range(parts):
            likes = likely * generator.gamma(2.0, size=EXPERTS) if burst else likely
            counts[layer] += generator.multinomial(tokens // parts, likes / likes.sum())
    return counts


def busiest(placement, likely):
    """The busiest device over the mean, of a layer's true shares."""
    pairs = spread_evenly(placement, np.tile((likely * 1e6).astype(np.int64), (LAYERS, 1))).sum(axis=1)
    return float((pairs.max(axis=1) / pairs.mean(axis=1)).max())


def windows(seed, tokens, burst, laws, moves=BUDGET):
    """The placement after each window, and how many slots moved; `laws` of the windows."""
    generator, replanner, given, planned = np.random.default_rng(seed), Replanner(most_moves=moves), GivenMaps(), serving()
    for law in laws:
        found = replanner.next(planned, given, Serving(loads=drawn(generator, law, tokens, burst)))
        given.remember(LiveMap(slots=SlotMap.of(found.placement), placement=found.placement))
        yield found


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("tokens", [200, 5_000, 500_000])
@pytest.mark.parametrize("seed", range(3))
def test_on_steady_traffic_nothing_moves(seed, tokens, burst):
    if burst and tokens > 5_000:
        tokens = 20_000
    assert [found.moved for found in windows(seed, tokens, burst, [LIKELY] * 21)] == [0] * 21


@pytest.mark.parametrize(("tokens", "burst"), [(5_000, False), (500_000, False), (20_000, True)])
@pytest.mark.parametrize("seed", range(3))
def test_after_a_shift_at_most_the_budget_moves_and_the_load_comes_even(seed, tokens, burst):
    found = list(windows(seed, tokens, burst, [LIKELY] * 3 + [TURNED] * 24))
    moves = [one.moved for one in found]
    assert not any(moves[:3])
    assert max(moves) <= BUDGET
    assert busiest(found[-1].placement, TURNED) < 0.8 * busiest(serving(), TURNED)
    for placement in (one.placement for one in found):
        assert (placement.slots_per_device() == 5).all()


def test_of_all_that_pays_the_most_is_done_first():
    """Layer 1 has turned further than layer 0, and the budget is for one replica or one swap."""
    planned = serving()
    loads = np.stack([LIKELY + (TURNED - LIKELY) * turned for turned in (0.5, 1.0, 0.0)]) * 10_000
    pairs = spread_evenly(planned, loads.astype(np.int64))
    found = replan(Window(serving=planned, loads=pairs, before=pairs, most_moves=2))
    changed = [old.devices_of_expert != new.devices_of_expert for old, new in zip(planned.layers, found.placement.layers, strict=True)]
    assert changed == [False, True, False]
    assert 1 <= found.moved <= 2
    assert replan(Window(serving=planned, loads=pairs, before=pairs, most_moves=0)).placement == planned


def test_weights_of_experts_that_stay_are_kept():
    weights = tuple((0.9, 0.1) if len(held) == 2 else (1.0,) for held in DEVICES)
    planned = replace(
        serving(), layers=tuple(replace(layer, replica_weights=weights, decode_weights=weights) for layer in serving().layers)
    )
    pairs = spread_evenly(planned, np.tile((TURNED * 1000).astype(np.int64), (LAYERS, 1)))
    layer = replan(Window(serving=planned, loads=pairs, before=pairs, most_moves=2)).placement.layers[0]
    for expert, held in enumerate(layer.devices_of_expert):
        if held == DEVICES[expert]:
            assert layer.replica_weights[expert] == layer.decode_weights[expert] == weights[expert]
        else:
            assert len(set(layer.replica_weights[expert])) == 1


def test_what_each_slot_computed_overrules_what_replicas_would_share():
    """All tokens of replicated experts are on their first device; measured, device loads are those, not the even ones."""
    planned, given, replanner = serving(), GivenMaps(), Replanner()
    rows = SlotMap.of(planned).physical_to_logical
    given.remember(LiveMap(slots=SlotMap.of(planned), placement=planned))
    by_slot = np.where(rows // 4 == np.arange(20) // 5, 1000, 0)
    even = np.full((LAYERS, EXPERTS), 1000)
    for _ in range(2):
        assert replanner.next(planned, given, Serving(loads=even, rows=rows, measured=Measured(by_slot=by_slot))).moved == 0
    by_slot = np.where(np.arange(20) < 5, 4000, by_slot)
    loads = np.zeros_like(even)
    np.add.at(loads, (np.arange(LAYERS)[:, None], rows), by_slot)
    moved = [replanner.next(planned, given, Serving(loads=loads, rows=rows, measured=Measured(by_slot=by_slot))).moved for _ in range(2)]
    assert moved[0] == 0  # two windows that differ are no ground
    assert 0 < moved[1] <= BUDGET_SHARE * LAYERS * 20


def test_a_window_without_loads_keeps_what_serves_and_a_map_of_others_gets_the_plan():
    planned, given = serving(), GivenMaps()
    moved = DEVICES[::-1]
    layers = tuple(replace(layer, devices_of_expert=moved, replica_weights=even_weights(moved)) for layer in planned.layers)
    other = replace(planned, layers=layers)
    given.remember(LiveMap(slots=SlotMap.of(other), placement=other))
    nothing = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    rows = SlotMap.of(other).physical_to_logical
    assert Replanner().next(planned, given, Serving(loads=nothing)).placement == other
    assert Replanner().next(planned, given, Serving(loads=nothing, rows=rows)).placement == other
    natural = np.arange(20)[None].repeat(LAYERS, axis=0) % EXPERTS
    mixed = np.stack([rows[0], natural[1], rows[2]])
    found = Replanner().next(planned, given, Serving(loads=nothing, rows=mixed)).placement
    assert found.layers == (other.layers[0], planned.layers[1], other.layers[2])


def test_the_budget_is_a_variable(plan_path, monkeypatch):
    monkeypatch.setenv(MOVES, "12")
    live = plan_from_environment(logging.getLogger())
    assert isinstance(live, LivePlan)
    assert live.replanner.most_moves == 12
    monkeypatch.setenv(MOVES, "few")
    with pytest.raises(UsageError, match="GRACE_MOE_MOVES='few': set it to the most slots"):
        plan_from_environment(logging.getLogger())
