"""Verdicts against what a replay of many more requests says."""

import numpy as np
import pytest

from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import diagnose
from grace_moe.evaluation.diagnose import NOT_ENOUGH, NOT_WORTH_IT, WORTH_IT
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

MODEL = ModelSizes(num_experts=16, top_k=2, hidden_size=4096, expert_size=2048, weight_bytes=1.0)
FAST = Topology.parse("1x4:h100-400g")


def trace_of(*, hot: float, requests: int = 60, tokens: int = 40) -> RoutingTrace:
    """A share of the tokens chooses the first two of 16 experts, the others any two."""
    generator = np.random.default_rng(0)
    count = requests * tokens
    ids = np.argsort(generator.random((count, 16)), axis=1)[:, :2]
    ids[generator.random(count) < hot] = (0, 1)
    return RoutingTrace(
        topk_ids=ids[:, None].astype(np.int16),
        num_experts=16,
        layer_ids=(0,),
        request_ids=np.repeat(np.arange(requests, dtype=np.int32), tokens),
        source="t.safetensors",
    )


def test_a_hot_expert_in_prefill_is_worth_a_replica():
    found = diagnose(trace_of(hot=0.7), FAST, Setting(model=MODEL, batch_tokens=65_536))
    assert found.verdict == WORTH_IT
    assert found.gain > 0.2
    assert found.saved[0] > 0
    assert found.memory_bytes == pytest.approx(4 * MODEL.expert_bytes)  # 1.25 slots an expert
    assert found.next_command.startswith("grace-moe plan t.safetensors --topology ")
    value = found.to_dict()
    assert {"verdict", "reason", "milliseconds_per_layer", "memory_gb"} <= set(value)
    assert value["milliseconds_per_layer"]["now"] > value["milliseconds_per_layer"]["planned"]


def test_even_experts_are_not():
    found = diagnose(trace_of(hot=0.0, requests=400), FAST, Setting(model=MODEL, batch_tokens=65_536), redundancy=1.0)
    assert found.verdict == NOT_WORTH_IT
    assert found.next_command.startswith("grace-moe size")


def test_small_decode_batches_are_not():
    """The same trace in a large batch would be: in a small one weights are read, whoever has how many pairs."""
    trace = trace_of(hot=0.7)
    found = diagnose(trace, FAST, Setting(model=MODEL, phase="decode", batch_tokens=64, backend="allgather"))
    assert found.verdict == NOT_WORTH_IT
    assert "decode of 64 tokens" in found.reason


def test_few_requests_tell_nothing():
    found = diagnose(trace_of(hot=0.7, requests=6), FAST, Setting(model=MODEL))
    assert (found.verdict, found.now) == (NOT_ENOUGH, None)
    assert found.reason == "3 requests to measure prefill on; 8 are the fewest"
    assert found.to_dict()["milliseconds_per_layer"]["now"] is None


def test_against_the_placement_in_use():
    trace = trace_of(hot=0.7)
    now = plan(trace.split_requests()[0], FAST, "grace")
    found = diagnose(trace, FAST, Setting(model=MODEL, batch_tokens=65_536), now=now, candidates=[now])
    assert found.verdict == NOT_WORTH_IT
    assert found.gain == found.memory_bytes == 0
    other = plan(trace, Topology.parse("2x2"), "linear")
    with pytest.raises(MismatchError):
        diagnose(trace, FAST, Setting(model=MODEL), now=other)


def test_requests_that_are_all_alike_leave_nothing_open():
    """The interval is of requests: that a part of them comes in on few devices is none of it."""
    one = trace_of(hot=0.7, requests=1)
    trace = RoutingTrace(
        topk_ids=np.tile(one.topk_ids, (80, 1, 1)),
        num_experts=16,
        layer_ids=(0,),
        request_ids=np.repeat(np.arange(80, dtype=np.int32), one.num_tokens),
        source="t.safetensors",
    )
    found = diagnose(trace, Topology.parse("2x2:h100-400g"), Setting(model=MODEL, batch_tokens=65_536))
    assert found.saved[0] == pytest.approx(found.saved[1], rel=0.01)  # which replica a token takes is drawn
    assert found.verdict == WORTH_IT


def test_both_halves_are_evidence():
    trace = trace_of(hot=0.7)
    both = diagnose(trace, FAST, Setting(model=MODEL, batch_tokens=65_536))
    first, second = trace.split_requests()
    alone = [
        diagnose(planned, FAST, Setting(model=MODEL, batch_tokens=65_536), measure_on=measured)
        for planned, measured in ((first, second), (second, first))
    ]
    assert [len(found.plans) for found in (both, *alone)] == [2, 1, 1]
    assert both.now.total == pytest.approx(np.mean([found.now.total for found in alone]))
    assert both.planned.total == pytest.approx(np.mean([found.planned.total for found in alone]))
    assert both.saved[1] - both.saved[0] < max(found.saved[1] - found.saved[0] for found in alone)


def test_a_share_that_is_none():
    with pytest.raises(UsageError, match="least gain 3 is not a share from 0 to 1"):
        diagnose(trace_of(hot=0.7), FAST, Setting(), least_gain=3)
