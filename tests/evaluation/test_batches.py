"""Replay under batch policies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.evaluation import compare, evaluate
from grace_moe.evaluation.batches import batch_balance, number_batches
from grace_moe.planning import plan
from grace_moe.report import comparison_table
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads, synthetic_trace

TOPOLOGY = Topology.parse("2x2")
TRACE = synthetic_trace(tokens=400, layers=2, experts=16, top_k=4, skew=1.0)


def test_batches_by_hand():
    """Prefill in twos: 0 0 1; then decode steps 0 and 1 as batches 2 and 3."""
    assert number_batches(np.array([-1, 0, -1, 1, -1]), 5, 2).tolist() == [0, 2, 0, 3, 1]
    assert number_batches(None, 5, 2).tolist() == [0, 0, 1, 1, 2]
    assert number_batches(np.array([1, 0]), 2, 1024).tolist() == [1, 0]
    assert number_batches(None, 0, 1).tolist() == []


def test_balance_by_hand():
    """Two devices, the second twice as fast. Batch 0: loads 2 and 1 / 2, batch 2: loads 0 and 1; batch 1 has none."""
    devices, batches = np.array([[0, 0], [1, -1], [-1, -1], [1, 1]]), np.array([0, 0, 1, 2])
    assert batch_balance(devices, batches, np.array([1.0, 2.0])) == pytest.approx((2 / 1.25 + 1 / 0.5) / 2)
    assert batch_balance(devices[:0], batches[:0], np.ones(2)) == 0


def test_balance_is_measured_when_asked_for():
    placement = plan(TRACE, TOPOLOGY, "eplb")
    assert evaluate(placement, TRACE).batch_load_max_over_mean is None
    whole = evaluate(placement, TRACE, batch_tokens=400)
    assert whole.batch_load_max_over_mean == pytest.approx(whole.load_max_over_mean)
    assert whole.cross_node.tolist() == evaluate(placement, TRACE).cross_node.tolist()
    assert evaluate(placement, TRACE, batch_tokens=20).batch_load_max_over_mean > whole.load_max_over_mean


@settings(max_examples=20)
@given(policy=st.sampled_from(["lplb", "metro"]), batch=st.integers(20, 500))
def test_no_pair_is_lost(policy, batch):
    got = evaluate(plan(TRACE, TOPOLOGY, "eplb"), TRACE, policy=policy, batch_tokens=batch)
    assert got.device_load.sum(axis=1).tolist() == expert_loads(TRACE).sum(axis=1).tolist()


def test_lplb_evens_out_every_batch():
    placement = plan(TRACE, TOPOLOGY, "eplb")
    own, shared = (evaluate(placement, TRACE, policy=policy, batch_tokens=50) for policy in (None, "lplb"))
    assert shared.batch_load_max_over_mean - 1 < (own.batch_load_max_over_mean - 1) / 3


def test_metro_activates_fewer_experts():
    decode = RoutingTrace(
        topk_ids=TRACE.topk_ids,
        num_experts=16,
        layer_ids=(0, 1),
        request_ids=np.repeat(np.arange(40, dtype=np.int32), 10),
        phase=np.ones(400, np.uint8),
    )
    placement = plan(decode, TOPOLOGY, "eplb", redundancy=2.0)
    own, fewest = (evaluate(placement, decode, policy=policy).active_experts_max for policy in (None, "metro"))
    assert fewest < own


def test_without_replicas_no_policy_changes_anything():
    placement = plan(TRACE, TOPOLOGY, "linear")
    own = evaluate(placement, TRACE, batch_tokens=64).to_dict()
    for policy in ("lplb", "metro"):
        assert evaluate(placement, TRACE, policy=policy, batch_tokens=64).to_dict() == own


def test_compare_takes_method_and_policy():
    rows = compare(TRACE, TOPOLOGY, methods=("eplb", "eplb+lplb", "linear+metro")).rows
    assert [row.method for row in rows] == ["eplb", "eplb+lplb", "linear+metro"]
    assert rows[0].placement is rows[1].placement
    assert all(row.evaluation.batch_load_max_over_mean is not None for row in rows)
    assert rows[1].evaluation.to_dict() != rows[0].evaluation.to_dict()


def test_the_table_has_the_batches_where_they_were_measured():
    tables = [comparison_table(compare(TRACE, TOPOLOGY, methods=methods)) for methods in (("eplb",), ("eplb", "eplb+lplb"))]
    headings = [[" ".join(str(column.header).split()) for column in table.columns] for table in tables]
    assert [column for column in headings[1] if column not in headings[0]] == ["busiest in batch"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("eplb+best",), r"policy 'best' of 'eplb\+best' is unknown; use one of lplb, metro"),
        (("eplb+",), r"policy '' of 'eplb\+' is unknown"),
        (("best+lplb",), "method 'best' is unknown; use one of grace, "),
    ],
)
def test_what_compare_does_not_know(methods, message):
    with pytest.raises(UsageError, match=message):
        compare(TRACE, TOPOLOGY, methods=methods)


def test_what_evaluate_does_not_know():
    placement = plan(TRACE, TOPOLOGY, "linear")
    with pytest.raises(UsageError, match="policy 'best' is unknown; use one of lplb, metro"):
        evaluate(placement, TRACE, policy="best")
    with pytest.raises(UsageError, match="batch_tokens 0 is out of range; use 1 or more"):
        evaluate(placement, TRACE, batch_tokens=0)
