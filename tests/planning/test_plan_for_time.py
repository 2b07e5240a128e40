"""Plans for time: what the links, the phase and the devices change, on requests that were not planned on."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.small_optimum import everywhere

from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation.flows import replay_flows
from grace_moe.placement import LayerPlacement
from grace_moe.planning import plan
from grace_moe.planning.grace.canonical_names import device_order, in_order
from grace_moe.planning.grace.clock import clock_of, timed
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.topology import Link, Tier, Topology
from grace_moe.trace import LoadProfile, expert_loads, synthetic_trace

QUICK = {"effort": 0.1}
MODEL = replace(OLMOE, num_experts=16, top_k=4)
TRACE = synthetic_trace(tokens=1600, experts=16, top_k=4, layers=1, requests=80, skew=0.8)


def seconds(placement, trace, topology, setting):
    return step_time(replay_flows(placement, trace, topology)[0], topology, setting).total


def with_speeds(topology, speeds):
    given = iter(speeds)
    nodes = tuple(replace(n, devices=tuple(replace(d, relative_speed=next(given)) for d in n.devices)) for n in topology.nodes)
    return replace(topology, nodes=nodes)


def with_matrix(topology, between):
    node = topology.node_of_device
    inside = topology.intra_node.bandwidth_bytes_per_s
    rows = tuple(tuple(inside if a == b else between(int(a), int(b)) for b in node) for a in node)
    return replace(topology, bandwidth=rows)


def planned_both_ways(topology, setting, trace=TRACE):
    """Seconds of the plan for copies and of the plan for time, on the half of the requests that was planned on and on the other: each
    request once on every device, as a batch has as many tokens on each."""
    ours, others = trace.split_requests()
    copies = plan(ours, topology, backend=setting.backend, **QUICK)
    time = plan(ours, topology, setting=setting, **QUICK)
    halves = [everywhere(half, topology.num_devices) for half in (ours, others)]
    return [[seconds(p, half, topology, setting) for p in (copies, time)] for half in halves], time


EDGE = with_speeds(with_matrix(Topology.parse("3x1:a100-200g"), lambda a, b: 1e9 if 2 in (a, b) else 25e9), (1.0, 1.0, 0.25))


def test_a_slow_edge_node_is_planned_for():
    (_, (copies, time)), _ = planned_both_ways(EDGE, Setting(model=MODEL))
    assert time < 0.95 * copies


def test_a_slow_device_is_given_little():
    slow = with_speeds(Topology.parse("3x1:h100-400g"), (1.0, 1.0, 0.25))
    placement = plan(TRACE, slow, setting=Setting(model=MODEL), **QUICK)
    load = replay_flows(placement, TRACE, slow)[0].pairs_of_device().sum(axis=0)
    assert load[2] < 0.5 * load[:2].min()


def test_small_decode_batches_get_no_replica_to_read():
    topology = Topology.parse("1x4:h100-400g")
    setting = Setting(model=MODEL, phase="decode", batch_tokens=16)
    (_, (copies, time)), placement = planned_both_ways(topology, setting)
    assert placement.slots_total_over_experts == 1.0
    assert time < 0.95 * copies


@pytest.mark.parametrize("backend", ["hierarchical", "deepep_low_latency", "allgather"])
def test_no_backends_plan_is_slower_than_that_for_copies_where_it_was_planned(backend):
    setting = Setting(model=MODEL, backend=backend)
    ((copies, time), _), _ = planned_both_ways(Topology.parse("2x2:h100-400g"), setting)
    assert time <= 1.01 * copies


def test_experts_that_do_not_fire_in_the_trace_are_not_parked_on_one_device():
    """Experts 2 and 3 never fire. One request more may choose them, and both would be read where 1 is; of the trace as it is that is free."""
    ids = np.array([[0, 1]] * 80)
    problem = LayerProblem(
        layer_id=0,
        ids=ids,
        unit=np.arange(len(ids)) // 2,
        experts=4,
        topology=Topology.parse("1x2:h100-400g"),
        slots=3,
        imbalance_price=4.0,
        effort=1.0,
        seed=0,
        seed_of_days=0,
    )
    big = ModelSizes(num_experts=4, top_k=2, hidden_size=4096, expert_size=14336, weight_bytes=2, moe_layers=1, source="made")
    parked, shared = (
        LayerPlacement(layer_id=0, devices_of_expert=hosts, replica_weights=((1.0,),) * 4)
        for hosts in (((0,), (1,), (1,), (1,)), ((0,), (1,), (0,), (1,)))
    )
    for as_it_is in (True, False):
        clock = clock_of(problem, Setting(model=big, phase="decode", batch_tokens=64), as_it_is=as_it_is)
        both = [timed(clock, layer).busiest[0] for layer in (parked, shared)]
        assert (both[0] > 1.01 * both[1]) != as_it_is


def test_it_is_the_same_to_the_byte_again_and_with_other_threads():
    setting = Setting(model=MODEL, phase="decode", batch_tokens=64)
    plans = [plan(TRACE, EDGE, setting=setting, threads=threads, **QUICK) for threads in (1, 2)]
    assert plans[0].layers == plans[1].layers
    assert plans[0].slots_per_device().max() <= -(-int(1.25 * 16) // 3)


def test_its_provenance_has_what_it_is_for():
    setting = Setting(model=MODEL, phase="decode", batch_tokens=64, backend="flat", overlap=0.5)
    provenance = plan(TRACE, Topology.parse("2x2"), setting=setting, **QUICK).provenance
    served = provenance["served"]
    assert (served["phase"], served["batch"], served["overlap"], provenance["backend"]) == ("decode", 64, 0.5, "flat")
    assert served["model"]["hidden_size"] == MODEL.hidden_size
    assert served["seconds"]["cross_node_copy"] > 0
    assert "served" not in plan(TRACE, Topology.parse("2x2"), **QUICK).provenance


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "eplb"}, "plans the same whatever is served"),
        ({"price": 2.0}, "option price is for plans for copies"),
        ({"request_placement": True}, "option request_placement"),
        ({"decode": "experts"}, "option decode is"),
        ({"backend": "flat"}, "leave backend out"),
    ],
)
def test_what_has_no_effect_is_refused(options, told):
    with pytest.raises(UsageError, match=told):
        plan(TRACE, Topology.parse("2x2"), setting=Setting(model=MODEL), **options)


def test_a_start_counts_alone_and_another_model_are_refused():
    topology, setting = Topology.parse("2x2"), Setting(model=MODEL)
    with pytest.raises(UsageError, match="leave out start"):
        plan(TRACE, topology, setting=setting, start=plan(TRACE, topology, "linear"))
    with pytest.raises(UsageError, match="counts only"):
        plan(LoadProfile(loads=expert_loads(TRACE), layer_ids=TRACE.layer_ids), topology, setting=setting)
    with pytest.raises(MismatchError, match="give the model of the trace"):
        plan(TRACE, topology, setting=Setting())


def test_links_follow_their_devices_when_a_node_is_named_by_speed():
    topology = with_speeds(Topology.parse("1x3"), (0.5, 2.0, 1.0))
    matrix = tuple(tuple(float(10 * a + b + 1) for b in range(3)) for a in range(3))
    pair = Tier(name="pair", link=Link(bandwidth_bytes_per_s=1e9, latency_s=0.0), groups=((0, 1),))
    named = in_order(replace(topology, bandwidth=matrix, tiers=(pair,)), device_order(topology))
    assert named.relative_speed.tolist() == [2.0, 1.0, 0.5]
    assert np.array(named.bandwidth).tolist() == np.array(matrix)[np.ix_([1, 2, 0], [1, 2, 0])].tolist()
    assert named.tiers[0].groups == ((0, 2),)
