"""Re-planning by sampled choices, window by window, as an engine's ranks do it; and the sample of a rank's routers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grace_moe import Topology, evaluate, plan
from grace_moe.adapt.simulate.day import renamed
from grace_moe.engines.live.given_maps import GivenMaps, LiveMap
from grace_moe.engines.live.replanner import Measured, Replanner, Serving
from grace_moe.engines.live.window_adapter import SeenChoices
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.vllm.sampled import RouterSample, tokens_of_requests
from grace_moe.trace import expert_loads, synthetic_trace

TRACE = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
PLAN = plan(TRACE, Topology.parse("2x2"), slots_per_device=5, effort=0.1)
BUDGET = 12


def window(trace, random):
    """As many requests as the trace has, drawn from it, each under a number of its own."""
    rows = [np.flatnonzero(trace.requests == request) for request in random.integers(200, size=200)]
    numbers = np.repeat(random.integers(1 << 40, size=200), [len(row) for row in rows])
    ids = trace.topk_ids[np.concatenate(rows)]
    return SeenChoices(topk_ids=ids, requests=numbers, tokens=4 * len(ids), move_price=1.0)


def served(traces, moves=BUDGET):
    """What comes of each window, of a cluster that serves every map it is given."""
    random, given, replanner = np.random.default_rng(0), GivenMaps(), Replanner(most_moves=moves)
    rows = SlotMap.of(PLAN).physical_to_logical
    given.remember(LiveMap(slots=SlotMap.of(PLAN), placement=PLAN))
    for trace in traces:
        seen = window(trace, random)
        loads = expert_loads(replace(TRACE, topk_ids=seen.topk_ids, request_ids=None, phase=None))
        measured = Measured(by_slot=np.zeros_like(rows, dtype=np.int64), seen=seen)
        found = replanner.next(PLAN, given, Serving(loads=loads, rows=rows, measured=measured))
        slots = SlotMap.of(found.placement)
        given.remember(LiveMap(slots=slots, placement=found.placement))
        rows = slots.physical_to_logical
        yield found


def test_on_steady_traffic_nothing_moves_and_nothing_is_decided():
    found = list(served([TRACE] * 24))
    assert [(one.moved, one.reason) for one in found] == [(0, "")] * 24
    assert all(one.placement == PLAN for one in found)


def test_after_a_shift_at_most_the_budget_moves_and_copies_fall():
    other = renamed(TRACE)
    found = list(served([TRACE] * 4 + [other] * 4))
    assert not any(one.moved for one in found[:4])
    assert 0 < max(one.moved for one in found) <= BUDGET
    assert all(("traffic has changed" in one.reason) == bool(one.reason) for one in found)
    assert any(one.reason for one in found[4:8])
    assert (found[-1].placement.slots_per_device() == 5).all()
    assert evaluate(found[-1].placement, other).cross_node_copies < 0.98 * evaluate(PLAN, other).cross_node_copies


def test_without_a_budget_of_moves_no_expert_moves():
    assert not any(one.moved for one in served([TRACE] * 2 + [renamed(TRACE)] * 3, moves=0))


def test_a_map_that_is_not_the_plans_yet_gets_the_plan():
    natural = (np.arange(20) % 16)[None].repeat(2, axis=0)
    seen = window(TRACE, np.random.default_rng(0))
    measured = Measured(by_slot=np.zeros((2, 20), dtype=np.int64), seen=seen)
    found = Replanner().next(PLAN, GivenMaps(), Serving(loads=np.ones((2, 16), dtype=np.int64), rows=natural, measured=measured))
    assert (found.placement, found.moved) == (PLAN, 0)


@pytest.fixture
def group():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_a_rank_keeps_whole_tokens_of_its_batches_and_their_requests(group):
    sample = RouterSample(layers=2, rank=3, per_batch=4, move_price=5.0)
    batch = torch.arange(12).reshape(6, 2)
    for layer in range(2):
        sample.note(layer, 0, batch[:4] + 100 * layer)  # in two parts, as micro-batches run
        sample.note(layer, 4, batch[4:] + 100 * layer)
    sample.keep({"a": 1, "b": 3})  # the last two rows pad
    sample.keep({})
    seen = sample.take().gathered(group)
    assert (seen.tokens, seen.move_price, seen.topk_ids.shape) == (4, 5.0, (4, 2, 2))
    assert (seen.topk_ids[:, 1] - seen.topk_ids[:, 0] == 100).all()
    assert sorted(seen.topk_ids[:, 0, 0].tolist()) == [0, 2, 4, 6]
    of_a = seen.requests == seen.requests[seen.topk_ids[:, 0, 0] == 0]
    assert of_a.sum() == 1
    assert len(set(seen.requests.tolist())) == 2
    assert (seen.requests >> 32 == 3).all()
    assert len(sample.take().gathered(group).topk_ids) == 0


def test_of_a_large_batch_some_tokens_are_kept(group):
    sample = RouterSample(layers=1, rank=0, per_batch=3, move_price=1.0)
    sample.note(0, 0, torch.arange(100)[:, None])
    sample.keep({"a": 50, "b": 50})
    seen = sample.take().gathered(group)
    assert (len(seen.topk_ids), seen.tokens) == (3, 100)
    numbers = {bool(row < 50): request for row, request in zip(seen.topk_ids[:, 0, 0].tolist(), seen.requests.tolist(), strict=True)}
    assert len(numbers) == len(set(numbers.values()))


def test_both_of_vllms_runners_tell_the_batchs_order():
    output = SimpleNamespace(num_scheduled_tokens={"a": 1, "b": 7})
    one = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["b", "a"]))
    two = SimpleNamespace(execute_model_state=SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a", "b"])))
    assert list(tokens_of_requests(one, output).items()) == [("b", 7), ("a", 1)]
    assert list(tokens_of_requests(two, output).items()) == [("a", 1), ("b", 7)]
    assert tokens_of_requests(SimpleNamespace(execute_model_state=None), output) == {}
    assert tokens_of_requests(SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a"])), output) == {}
