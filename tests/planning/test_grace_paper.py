from functools import cache

import numpy as np
import pytest

from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.planning import plan
from grace_moe.planning.paper.grouping import NODES_CUT
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads, synthetic_trace

TOPOLOGY = Topology.regular(2, 2)


def planted() -> RoutingTrace:
    """16 experts in blocks of 4; a token takes 3 of one block and 1 of the block's partner (0-1, 2-3)."""
    generator = np.random.default_rng(0)
    ids = np.empty((800, 1, 4), dtype=np.int16)
    for token in range(800):
        block = token % 4
        own = generator.choice(4, 3, replace=False) + 4 * block
        ids[token, 0] = [*own, generator.integers(4) + 4 * (block ^ 1)]
    return RoutingTrace(topk_ids=ids, num_experts=16, layer_ids=(5,), model="planted", dataset="blocks")


TRACE = planted()
SKEWED = synthetic_trace(tokens=800, layers=3, experts=32, top_k=4, clusters=3, skew=1.0)


@cache
def skewed_plan(**options) -> Placement:
    """Of `SKEWED`; the same options are planned once."""
    return plan(SKEWED, TOPOLOGY, "grace_paper", **options)


def test_planted_groups_are_found_on_their_nodes():
    placement = plan(TRACE, TOPOLOGY, "grace_paper", replication="none", r=0.15)
    groups = [frozenset(experts) for experts in placement.experts_of_device(0)]
    block = [frozenset(range(4 * b, 4 * b + 4)) for b in range(4)]
    assert {frozenset(groups[:2]), frozenset(groups[2:])} == {frozenset(block[:2]), frozenset(block[2:])}
    assert placement.layer_ids == (5,)
    assert placement.replica_choice == "tar"


def test_replicas_follow_the_rule_of_the_paper():
    placement = skewed_plan()
    loads = expert_loads(SKEWED)
    for index, layer in enumerate(placement.layers):
        primary = np.array([devices[0] for devices in layer.devices_of_expert])
        group_loads = np.bincount(primary, weights=loads[index], minlength=4)
        heaviest = int(group_loads.argmax())
        n = min(max(1, int(group_loads.max() / group_loads.mean())), 3)
        hot = [e for e, devices in enumerate(layer.devices_of_expert) if len(devices) > 1]
        assert hot
        assert all(len(layer.devices_of_expert[e]) == 1 + n and primary[e] == heaviest for e in hot)
        least = [d for d in np.argsort(group_loads, kind="stable") if d != heaviest][:n]
        assert all(layer.devices_of_expert[e][1:] == tuple(least) for e in hot)


def test_components_of_the_papers_table():
    none = skewed_plan(replication="none")
    fixed = skewed_plan(replication="fixed", replica_choice="wrr")
    assert none.slots_total_over_experts == 1
    assert fixed.replica_choice == "wrr"
    assert {len(devices) for layer in fixed.layers for devices in layer.devices_of_expert} == {1, 2}
    for layer, other in zip(none.layers, fixed.layers, strict=True):
        assert [d[0] for d in layer.devices_of_expert] == [d[0] for d in other.devices_of_expert]


def test_groupings():
    sizes = {}
    for grouping in ("uniform", "controlled", "fully", "hierarchical"):
        placement = skewed_plan(grouping=grouping, r=0.25, replication="none")
        sizes[grouping] = placement.slots_per_device()
        assert placement.provenance["options"]["grouping"] == grouping
    assert (sizes["uniform"] == 8).all()
    assert sizes["controlled"].min() >= 6
    assert sizes["controlled"].max() <= 10  # E = 8, d = 2
    assert sizes["fully"].max() > 10


def test_the_ratio_that_was_chosen_is_noted():
    notes = skewed_plan().provenance["notes"]
    assert notes[0].startswith("r = 0.")
    assert skewed_plan(r=0.2).provenance["notes"] == []
    assert skewed_plan(r=0.2).provenance["options"]["r"] == 0.2


def test_slot_limit_holds_with_replicas_and_is_noted():
    free = skewed_plan(r=0.5)
    limit = int(free.slots_per_device().max()) - 2
    placement = skewed_plan(r=0.5, slots_per_device=limit)
    assert placement.slots_per_device().max() <= limit
    assert any("the slot limit" in note and note.startswith("layer") for note in placement.provenance["notes"])
    tight = skewed_plan(slots_per_device=8)
    assert (tight.slots_per_device() == 8).all()
    assert any(NODES_CUT in note for note in tight.provenance["notes"])


def test_redundancy_is_noted_as_without_effect():
    placement = skewed_plan(r=0.15, redundancy=1.5)
    assert placement.layers == skewed_plan(r=0.15).layers
    assert placement.provenance["notes"] == ["redundancy 1.5 has no effect: grace_paper's replication rule decides the number of replicas"]


@pytest.mark.parametrize("shape", ["1x1", "1x3", "3x1"])
def test_degenerate_topologies(shape):
    placement = plan(SKEWED, Topology.parse(shape), "grace_paper")
    assert all(experts for index in range(3) for experts in placement.experts_of_device(index))


@pytest.mark.parametrize("grouping", ["hierarchical", "controlled"])
def test_traces_that_say_little(grouping):
    one_choice = synthetic_trace(tokens=50, experts=9, top_k=1, clusters=2)
    one_token = RoutingTrace(topk_ids=np.array([[[2, 3]]], dtype=np.int16), num_experts=9, layer_ids=(0,))
    nothing = RoutingTrace(topk_ids=np.full((4, 1, 2), -1, dtype=np.int16), num_experts=9, layer_ids=(0,))
    for trace in (one_choice, one_token, nothing):
        placement = plan(trace, TOPOLOGY, "grace_paper", grouping=grouping)
        assert all(placement.experts_of_device(0))
    # Without loads there is nothing to replicate.
    assert plan(nothing, TOPOLOGY, "grace_paper").slots_total_over_experts == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grouping": "flat"}, r"grouping 'flat' is unknown; use one of hierarchical, uniform, controlled, fully"),
        ({"replication": "more"}, r"replication 'more' is unknown; use one of dynamic, fixed, none"),
        ({"replica_choice": "best"}, r"replica_choice 'best' is unknown; use one of tar, wrr"),
        ({"r": 1.5}, r"r 1.5 is out of range; use 'knee' or a ratio from 0 to 1"),
        ({"r": "elbow"}, r"r 'elbow' is out of range"),
        ({"r": [1]}, r"r \[1\] is out of range; use 'knee' or a ratio from 0 to 1"),
        ({"r": None}, r"r None is out of range"),
        ({"knee": "token"}, r"knee 'token' is unknown; use one of model, layer"),
        ({"prediction": "best"}, r"prediction 'best' is unknown; use one of conserved, printed"),
    ],
)
def test_errors_name_the_mend(options, message):
    with pytest.raises(UsageError, match=message):
        plan(SKEWED, TOPOLOGY, "grace_paper", **options)


def test_more_devices_than_experts_is_a_clear_error():
    with pytest.raises(UsageError, match=r"16 experts on 32 devices.*use fewer devices, or method eplb"):
        plan(TRACE, Topology.regular(8, 4), "grace_paper")


def test_each_layer_may_have_its_own_knee():
    notes = skewed_plan(knee="layer").provenance["notes"]
    assert sum(len(note.split(":")[0].split(",")) for note in notes if ": r = 0." in note) == 3
    # Of one layer the two are the same.
    one, other = (plan(TRACE, TOPOLOGY, "grace_paper", knee=knee) for knee in ("model", "layer"))
    assert one.layers == other.layers


def test_the_printed_prediction_changes_weights_only():
    said, printed = (skewed_plan(prediction=p) for p in ("conserved", "printed"))
    assert [layer.devices_of_expert for layer in said.layers] == [layer.devices_of_expert for layer in printed.layers]
    assert [layer.replica_weights for layer in said.layers] != [layer.replica_weights for layer in printed.layers]
