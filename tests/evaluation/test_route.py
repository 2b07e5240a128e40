"""Replay under batch policies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.evaluation import Serving, evaluate
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads, synthetic_trace

TOPOLOGY = Topology.parse("2x2")
TRACE = synthetic_trace(tokens=400, layers=2, experts=16, top_k=4, skew=1.0)


def test_balance_is_measured_when_asked_for():
    placement = plan(TRACE, TOPOLOGY, "eplb")
    assert evaluate(placement, TRACE).batch_load_max_over_mean is None
    whole = evaluate(placement, TRACE, serving=Serving(batch_tokens=400))
    assert whole.batch_load_max_over_mean == pytest.approx(whole.load_max_over_mean)
    assert whole.copies.cross_node.tolist() == evaluate(placement, TRACE).copies.cross_node.tolist()
    assert evaluate(placement, TRACE, serving=Serving(batch_tokens=20)).batch_load_max_over_mean > whole.load_max_over_mean


@settings(max_examples=20)
@given(policy=st.sampled_from(["lplb", "metro"]), batch=st.integers(20, 500))
def test_no_pair_is_lost(policy, batch):
    got = evaluate(plan(TRACE, TOPOLOGY, "eplb"), TRACE, serving=Serving(policy=policy, batch_tokens=batch))
    assert got.device_load.sum(axis=1).tolist() == expert_loads(TRACE).sum(axis=1).tolist()


def test_lplb_evens_out_every_batch():
    placement = plan(TRACE, TOPOLOGY, "eplb")
    own, shared = (evaluate(placement, TRACE, serving=Serving(policy=policy, batch_tokens=50)) for policy in (None, "lplb"))
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
    own, fewest = (evaluate(placement, decode, serving=Serving(policy=policy)).active_experts_max for policy in (None, "metro"))
    assert fewest < own


def test_without_replicas_no_policy_changes_anything():
    placement = plan(TRACE, TOPOLOGY, "linear")
    own = evaluate(placement, TRACE, serving=Serving(batch_tokens=64)).to_dict()
    for policy in ("lplb", "metro"):
        assert evaluate(placement, TRACE, serving=Serving(policy=policy, batch_tokens=64)).to_dict() == own


def test_what_evaluate_does_not_know():
    placement = plan(TRACE, TOPOLOGY, "linear")
    with pytest.raises(UsageError, match="policy 'best' is unknown; use one of lplb, metro"):
        evaluate(placement, TRACE, serving=Serving(policy="best"))
    with pytest.raises(UsageError, match="batch_tokens 0 is out of range; use 1 or more"):
        evaluate(placement, TRACE, serving=Serving(batch_tokens=0))
