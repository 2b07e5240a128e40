"""Which replicas decode uses: by hand, its bounds, its bookkeeping against counting from nothing, and the plan's option."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.evaluation import compare, evaluate
from grace_moe.placement import REPLICA_CHOICES, LayerPlacement, Placement, even_weights
from grace_moe.planning import plan
from grace_moe.planning.grace.decode.batches import sample_batches
from grace_moe.planning.grace.decode.problem import DecodeBounds, DecodeProblem
from grace_moe.planning.grace.decode.usage import ReplicaUse
from grace_moe.planning.grace.decode.weights import NO_DECODE, NOTHING_SPARED, layers_with_decode_weights
from grace_moe.report import comparison_table, describe
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, synthetic_trace

ANYTHING = DecodeBounds(copies=1e6, load=1e6, batch=4)


def layer_with_decode_weights(problem: DecodeProblem) -> LayerPlacement:
    return layers_with_decode_weights([problem])[0]


def layer_of(*hosts) -> LayerPlacement:
    rows = tuple(tuple(devices) for devices in hosts)
    return LayerPlacement(layer_id=0, devices_of_expert=rows, replica_weights=even_weights(rows))


def problem_of(layer, shape, ids, sources, bounds=ANYTHING, policy="joint") -> DecodeProblem:
    return DecodeProblem(
        layer=layer, topology=Topology.parse(shape), policy=policy, ids=np.array(ids), sources=np.array(sources), bounds=bounds, seed=0
    )


def test_the_replica_on_the_device_with_more_experts_is_given_up():
    """One node. Device 0 holds experts 0, 1, 2, device 1 experts 0, 3, and all are active in every batch: 3 and 2, or 2 and 2."""
    layer = layer_of([0, 1], [0], [0], [1])
    found = layer_with_decode_weights(problem_of(layer, "1x2", [[0, 1], [0, 2], [0, 3], [0, 1]] * 8, [0, 1, 0, 1] * 8))
    assert found == replace(layer, decode_weights=((0.0, 1.0), (1.0,), (1.0,), (1.0,)))


def test_all_tokens_of_an_expert_go_to_one_replica_where_that_costs_nothing():
    """METRO's lemma. Experts 0 to 3 are on both devices of one node and always active: two on each, each once."""
    layer = layer_of(*[[0, 1]] * 4)
    found = layer_with_decode_weights(problem_of(layer, "1x2", [[0, 1, 2, 3]] * 32, [0, 1] * 16))
    assert [sorted(row) for row in found.decode_weights] == [[0.0, 1.0]] * 4
    assert np.sum(found.decode_weights, axis=0).tolist() == [2, 2]


def test_a_replica_that_saves_copies_is_kept_within_the_bound():
    """2x1, three experts on device 0, expert 0 on device 1 too. Tokens of device 1 cross for expert 1 or 2. Without expert 0 on device 0
    two are active there at most, and the tokens of device 0 cross, too: only where copies may double."""
    layer = layer_of([0, 1], [0], [0])
    ids, sources = [[0, 1], [0, 2], [0, 1], [0, 2]] * 8, [0, 1, 1, 0] * 8
    kept = layer_with_decode_weights(problem_of(layer, "2x1", ids, sources, DecodeBounds(copies=0.9, load=9, batch=4)))
    assert kept == layer
    spared = layer_with_decode_weights(problem_of(layer, "2x1", ids, sources, DecodeBounds(copies=1.0, load=9, batch=4)))
    assert spared.decode_weights == ((0.0, 1.0), (1.0,), (1.0,))


def test_the_bound_on_copies_is_shared_by_the_layers():
    """2x1, four experts on device 0, expert 0 on device 1 too; three tokens of four come from device 1, and cross: 24 copies. Without expert 0
    on device 0 the fourth does, too: a third more, too much for a fifth of 24, not for a fifth of that and of a layer without replicas."""
    ids, sources = [[0, 1], [0, 2], [0, 3], [0, 1]] * 8, [0, 1, 1, 1] * 8
    bounds = DecodeBounds(copies=0.2, load=9, batch=4)
    gains = problem_of(layer_of([0, 1], [0], [0], [0]), "2x1", ids, sources, bounds)
    other = problem_of(layer_of([0], [0], [0], [0]), "2x1", ids, sources, bounds)
    assert [ReplicaUse(problem).copies for problem in (gains, other)] == [24, 24]
    assert layers_with_decode_weights([gains]) == (gains.layer,)
    spared, same = layers_with_decode_weights([gains, other])
    assert spared.decode_weights == ((0.0, 1.0), (1.0,), (1.0,), (1.0,))
    assert same == other.layer


def test_copies_are_not_spent_where_another_device_stays_the_maximum():
    """2x1. Device 0 always has three active experts of its own, device 1 one, and both the replica of expert 0: four and two. Given up on
    device 0 it is three. On 3x1, where device 2 has four and no replica, nothing would be gained, and nothing is done."""
    ids, sources = [[0, 1], [0, 2], [0, 3], [0, 4]] * 8, [1, 1, 1, 0] * 8
    bounds = DecodeBounds(copies=9, load=9, batch=4)
    gains = layer_with_decode_weights(problem_of(layer_of([0, 1], [0], [0], [0], [1]), "2x1", ids, sources, bounds))
    assert gains.decode_weights[0] == (0.0, 1.0)
    ids = [[0, 1], [0, 2], [0, 3], [0, 4], [5, 6], [7, 8], [5, 6], [7, 8]] * 4
    layer = layer_of([0, 1], [0], [0], [1], [1], [2], [2], [2], [2])
    bounds = DecodeBounds(copies=9, load=9, batch=8)
    assert layer_with_decode_weights(problem_of(layer, "3x1", ids, [0, 1] * 16, bounds)) == layer


def test_a_replica_that_evens_the_load_out_is_kept_within_the_bound():
    """One node. A batch has experts 1 and 2 (device 0) once, expert 3 (device 1) twice, expert 0 (either) four times: 4 pairs each. Without
    expert 0 on device 0 two experts are active there instead of three, and device 1 has 6 pairs: half as much again, give or take the draw."""
    layer, ids, sources = layer_of([0, 1], [0], [0], [1]), [[0, 1], [0, 2], [0, 3], [0, 3]] * 8, [0] * 32
    for load, want in ((0.2, ()), (0.9, ((0.0, 1.0), (1.0,), (1.0,), (1.0,)))):
        found = layer_with_decode_weights(problem_of(layer, "1x2", ids, sources, DecodeBounds(copies=0, load=load, batch=4), "wrr"))
        assert found.decode_weights == want


def test_the_busier_device_gives_its_replica_up_first():
    """Device 1 has 32 pairs of its own, device 0 none: expert 0 on device 0 alone makes 32 and 32, on device 1 alone 0 and 64."""
    layer, ids, sources = layer_of([0, 1], [1], [1], [0]), [[0, 1], [0, 2], [0, 1], [0, 2]] * 8, [0] * 32
    found = layer_with_decode_weights(problem_of(layer, "1x2", ids, sources, DecodeBounds(copies=0, load=0, batch=4), "wrr"))
    assert found.decode_weights == ((1.0, 0.0), (1.0,), (1.0,), (1.0,))


@st.composite
def problems(draw):
    nodes, per_node, experts = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(2, 6))
    devices = nodes * per_node
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = tuple(tuple(generator.permutation(devices)[: generator.integers(1, devices + 1)].tolist()) for _ in range(experts))
    raw = [generator.random(len(row)) * (generator.random(len(row)) < 0.8) + 1e-9 for row in rows]
    layer = LayerPlacement(layer_id=3, devices_of_expert=rows, replica_weights=tuple(tuple((w / w.sum()).tolist()) for w in raw))
    tokens, batch, k = 24, draw(st.sampled_from([1, 4, 8])), draw(st.integers(1, min(3, experts)))
    ids = np.stack([generator.permutation(experts)[:k] for _ in range(tokens)])
    ids[generator.random(ids.shape) < 0.1] = -1
    bounds = DecodeBounds(copies=draw(st.sampled_from([0, 0.1, 9])), load=draw(st.sampled_from([0, 0.2, 9])), batch=batch)
    policy = draw(st.sampled_from(REPLICA_CHOICES))
    return problem_of(layer, f"{nodes}x{per_node}", ids, generator.integers(0, devices, tokens), bounds, policy)


@settings(max_examples=60)
@given(problem=problems())
def test_bounds_hold_and_every_expert_keeps_a_replica(problem):
    before = ReplicaUse(problem)
    found = layer_with_decode_weights(problem)
    Placement(topology=problem.topology, num_experts=len(found.devices_of_expert), layers=(found,), replica_choice=problem.policy)  # checks
    assert replace(found, decode_weights=()) == problem.layer
    after = ReplicaUse(replace(problem, layer=found.in_decode()))
    assert after.active.max(axis=1).mean() < before.active.max(axis=1).mean() or found == problem.layer
    assert after.copies <= before.copies * (1 + problem.bounds.copies) or problem.topology.num_nodes == 1
    assert after.load.max() <= before.load.max() * (1 + problem.bounds.load) + 1e-9
    assert after.load.sum() == pytest.approx(before.load.sum())
    assert layer_with_decode_weights(problem) == found


@settings(max_examples=60)
@given(problem=problems(), data=st.data())
def test_what_a_change_says_is_what_counting_from_nothing_says(problem, data):
    state = ReplicaUse(problem)
    for _ in range(3):
        spare = [(expert, device) for expert, row in enumerate(state.used) if len(row) > 1 for device in row]
        if not spare:
            break
        state.make(state.without(*data.draw(st.sampled_from(spare))))
    fresh = ReplicaUse(replace(problem, layer=state.layer()))
    assert fresh.devices.tolist() == state.devices.tolist()
    assert fresh.pairs.tolist() == state.pairs.tolist()
    assert fresh.active.tolist() == state.active.tolist()
    assert fresh.copies == state.copies
    assert fresh.load.tolist() == pytest.approx(state.load.tolist())


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_batches_take_requests_in_turn(sizes, batch, seed):
    """No request is in a batch twice while another is not in it at all, and every drawn token is of the trace."""
    request = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    tokens = sample_batches(request, batch, seed)
    assert len(tokens) % batch == 0
    assert (sample_batches(request, batch, seed) == tokens).all()
    for drawn in request[tokens].reshape(-1, batch)[:20]:
        times = np.bincount(drawn, minlength=len(sizes))
        assert times.max() - times.min() <= 1


@pytest.fixture(scope="module")
def decoding() -> RoutingTrace:
    """Prefill of 10 tokens and decode of 30, of each of 60 requests."""
    trace = synthetic_trace(tokens=2400, layers=2, experts=32, top_k=4, clusters=4, affinity=0.7, skew=0.7, requests=60, seed=3)
    return replace(trace, phase=(np.arange(2400) % 40 >= 10).astype(np.uint8), request_ids=np.repeat(np.arange(60), 40).astype(np.int32))


QUICK = {"effort": 0.05}


@pytest.mark.parametrize("shape", ["2x2", "9x1"])
def test_fewer_active_experts_on_requests_not_seen(decoding, shape):
    """Placement and prefill are the same; beyond 8 nodes too."""
    planned_on, measured_on = decoding.split_requests()
    topology = Topology.parse(shape)
    alike = plan(planned_on, topology, **QUICK)
    apart = plan(planned_on, topology, decode="experts", decode_copies=0.2, decode_load=0.5, decode_batch=30, **QUICK)
    assert [replace(layer, decode_weights=()) for layer in apart.layers] == list(alike.layers)
    assert describe(apart)["slots_used_in_decode_over_experts"] < describe(apart)["slots_total_over_experts"]
    assert describe(alike)["slots_used_in_decode_over_experts"] == describe(alike)["slots_total_over_experts"]
    before, after = evaluate(alike, measured_on), evaluate(apart, measured_on)
    assert after.active_experts_max < before.active_experts_max
    assert after.prefill_cross_node_copies == before.prefill_cross_node_copies
    assert after.prefill_load_max_over_mean == before.prefill_load_max_over_mean
    assert after.decode_cross_node_copies < 1.3 * before.decode_cross_node_copies
    assert apart.layers == plan(planned_on, topology, decode="experts", decode_copies=0.2, decode_load=0.5, decode_batch=30, **QUICK).layers


def test_by_default_nothing_is_written(decoding, tmp_path):
    placement = plan(decoding, Topology.parse("2x2"), **QUICK)
    placement.save(tmp_path / "plan.json")
    assert "decode_weights" not in (tmp_path / "plan.json").read_text()


def test_without_decode_tokens_all_count_and_the_plan_says_so(decoding):
    prefill = replace(decoding, phase=None)
    placement = plan(prefill, Topology.parse("2x2"), decode="experts", decode_copies=0.2, decode_load=0.5, **QUICK)
    assert any(layer.decode_weights for layer in placement.layers)
    assert NO_DECODE in placement.provenance["notes"]


def test_a_plan_without_replicas_says_that_nothing_can_be_spared(decoding):
    placement = plan(decoding, Topology.parse("2x2"), redundancy=1, decode="experts", **QUICK)
    assert not any(layer.decode_weights for layer in placement.layers)
    assert NOTHING_SPARED in placement.provenance["notes"]


def test_with_requests_placed_by_their_first_tokens(decoding):
    placement = plan(decoding, Topology.parse("2x2"), request_placement=True, decode="experts", decode_copies=1, decode_load=1, **QUICK)
    assert any(layer.decode_weights for layer in placement.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "fast"}, "decode 'fast' is unknown; use one of tokens, experts"),
        ({"decode_copies": -0.1}, r"decode_copies -0.1, decode_load 0.1: use shares from 0 to 1e6"),
        ({"decode_load": "much"}, r"decode_load 'much': use shares from 0 to 1e6"),
        ({"decode_batch": 0}, "decode_batch 0 is out of range; use 1 to 65536 tokens"),
        ({"decode_batch": 1.5}, "decode_batch 1.5 is out of range"),
    ],
)
def test_options_out_of_range(decoding, options, message):
    with pytest.raises(UsageError, match=message):
        plan(decoding, Topology.parse("2x2"), **options)


def test_counts_tell_nothing_of_batches():
    counts = LoadProfile(loads=np.arange(8)[None], layer_ids=(0,))
    with pytest.raises(UsageError, match="counts only, and decode experts needs a trace of tokens; plan with decode tokens"):
        plan(counts, Topology.parse("2x2"), decode="experts")


def test_compare_shows_decode_beside_the_others(decoding):
    comparison = compare(decoding, Topology.parse("2x2"), methods=("grace+decode", "eplb", "eplb+metro"))
    assert comparison.rows[0].placement.provenance["options"]["decode"] == "experts"
    headings = [" ".join(str(column.header).split()) for column in comparison_table(comparison).columns]
    assert {"busiest prefill", "busiest decode", "active experts"} <= set(headings)
    with pytest.raises(UsageError, match=r"policy 'decode' of 'eplb\+decode' is unknown; use one of lplb, metro"):
        compare(decoding, Topology.parse("2x2"), methods=("eplb+decode",))
