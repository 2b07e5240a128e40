"""Sweeps of clusters: packed by load, timed on other requests."""

from itertools import pairwise

import numpy as np
import pytest

from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import Sweep, size, stops_mattering
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

MODEL = ModelSizes(num_experts=32, top_k=4, hidden_size=2048, expert_size=1024)
BASE = Topology.parse("1x4:h100-400g")
TRACE = synthetic_trace(tokens=1200, experts=32, top_k=4, layers=2)


def points(**sweep):
    return size(TRACE, BASE, Setting(model=MODEL), Sweep(**sweep))


def test_every_combination_once():
    found = points(nodes=(1, 2), redundancies=(1.0, 1.5), links=(1.0, 2.0), batches=(64, 4096))
    keys = [(p.topology, p.redundancy, p.link, p.batch) for p in found]
    assert len(keys) == len(set(keys)) == 16
    assert {p.topology for p in found} == {"1x4", "2x4"}
    assert all(p.balanced.total > 0 and 0 < p.factor <= 1.05 for p in found)
    assert any(p.best for p in found)
    assert set(found[0].to_dict()) >= {"milliseconds_per_layer", "limited_by", "eplb_token_factor", "memory_gb_per_device"}


def test_replicas_take_memory_and_faster_links_take_no_longer():
    one, two = points(nodes=(2,), redundancies=(1.0, 2.0))
    assert two.memory_bytes == 2 * one.memory_bytes == pytest.approx(64 / 8 * 2 * MODEL.expert_bytes)
    times = [p.balanced.total for p in points(nodes=(2,), redundancies=(1.0,), links=(1.0, 2.0, 4.0))]
    assert all(slow >= fast for slow, fast in pairwise(times))


def test_more_devices_than_experts():
    found = points(nodes=(16,), redundancies=(1.0,))[0]
    assert found.devices == 64
    assert found.memory_bytes == pytest.approx(2 * MODEL.expert_bytes)


def test_where_something_stops_mattering_is_said():
    told = stops_mattering(points(nodes=(1,), redundancies=(1.0, 1.5), batches=(16, 65_536), links=(1.0, 2.0)))
    assert any("links beyond 1 times the base's save under 3%" in line for line in told)  # one node sends nothing between nodes


def test_what_cant_be_sized():
    with pytest.raises(UsageError, match="redundancies: slots over experts are 1 or more"):
        points(nodes=(1,), redundancies=(0.5,))
    irregular = Topology.from_dict({"nodes": [{"devices": [{}]}, {"devices": [{}, {}]}]})
    with pytest.raises(MismatchError, match="give one of equal nodes"):
        size(TRACE, irregular, Setting(), Sweep(nodes=(1,)))


def test_the_same_again_is_the_same():
    one, two = (points(nodes=(2,), redundancies=(1.25,)) for _ in range(2))
    assert [p.to_dict() for p in one] == [p.to_dict() for p in two]
    assert np.isfinite(one[0].balanced.total)
