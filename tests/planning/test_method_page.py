"""The example of docs/method.md, number by number."""

from functools import partial

import numpy as np
import pytest

from grace_moe.choice import choice_tables
from grace_moe.evaluation import evaluate
from grace_moe.planning import plan
from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.paper.grouping import hierarchical_draft
from grace_moe.planning.paper.replication import num_replicas, predict_loads, replicate
from grace_moe.planning.paper.sizes import controlled_sizes, hold_sizes
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

TOPOLOGY = Topology.regular(2, 2)
TOKENS = {(0, 1): 6, (0, 2): 4, (1, 2): 2, (2, 3): 2, (3, 4): 4, (4, 5): 1, (5, 6): 3, (6, 7): 1}
IDS = np.repeat(np.array(list(TOKENS), dtype=np.int16), list(TOKENS.values()), axis=0)
TRACE = RoutingTrace(topk_ids=IDS[:, None], num_experts=8, layer_ids=(0,))
AFFINITY = affinity_matrix(IDS, 8)
GROUPS = ((0, 1, 2), (3, 4), (5, 6), (7,))


def test_profile():
    assert AFFINITY[0, 1] == 6
    assert layer_loads(IDS, 8).tolist() == [10, 8, 8, 6, 5, 4, 4, 1]
    assert layer_loads(IDS, 8).sum() == 2 * TRACE.num_tokens == 46


def test_group():
    draft = hierarchical_draft(AFFINITY, TOPOLOGY, [8] * 4, seed=0)
    assert [part.experts for part in draft.parts] == [(0, 1, 2, 3, 4), (5, 6, 7)]
    assert [controlled_sizes(len(part.experts), 2, 0.15) for part in draft.parts] == [(1, 3), (1, 2)]
    held = draft.hold(partial(controlled_sizes, ratio=0.15))
    assert held.groups == GROUPS
    assert held.utilisation == 19 / 23
    assert held.deviation == 0.5**0.5


def test_group_where_a_cluster_is_too_large():
    inside = AFFINITY[:5, :5]
    assert hold_sizes(inside, ((0, 1, 2, 3), (4,)), [1, 1], [3, 3]) == ((0, 1, 2), (3, 4))


def test_replicate_and_predict_load():
    loads = layer_loads(IDS, 8)
    group_loads = np.array([loads[list(group)].sum() for group in GROUPS])
    assert group_loads.tolist() == [26, 11, 8, 1]
    assert num_replicas(group_loads) == 2
    placed = replicate(loads, GROUPS)
    assert placed.devices_of_expert == ((0, 3, 2), (0, 3, 2), (0,), (1,), (1,), (2,), (2,), (3,))
    assert predict_loads(loads, placed.devices_of_expert, 4).tolist() == [14, 11, 14, 7]


def test_online_phase():
    placement = plan(TRACE, TOPOLOGY, "grace_paper", r=0.15)
    assert placement.layers[0].devices_of_expert == replicate(layer_loads(IDS, 8), GROUPS).devices_of_expert
    assert placement.layers[0].replica_weights[0] == pytest.approx((1 / 4, 1 / 2, 1 / 4))
    (table,) = choice_tables(placement)
    assert table.choose(0, np.zeros((4, 1), dtype=np.int64), np.arange(4), np.arange(4), seed=0).ravel().tolist() == [0, 0, 2, 3]


def test_communication():
    """Experts 7 and 5 from each of the four devices, which requests are dealt to in turn."""
    everywhere = RoutingTrace(topk_ids=np.tile(np.array([7, 5], dtype=np.int16), (4, 1, 1)), num_experts=8, layer_ids=(0,))
    counted = evaluate(plan(TRACE, TOPOLOGY, "grace_paper", r=0.15), everywhere)
    assert (counted.cross_node_copies * 4, counted.intra_node_copies * 4) == (2, 4)
    assert (counted.flat_cross_node_copies * 4, (counted.flat_copies - counted.flat_cross_node_copies) * 4) == (4, 2)
