"""Traffic between devices, from an evaluation's links."""

import numpy as np
import pytest

from grace_moe.evaluation import evaluate
from grace_moe.planning import plan
from grace_moe.report.traffic import device_load, device_traffic, node_traffic
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace


@pytest.mark.parametrize("topology", ["2x2", "3x2", "4x1", "1x3"])
@pytest.mark.parametrize("method", ["linear", "eplb"])
def test_traffic_between_devices_adds_up(topology, method):
    topology, trace = Topology.parse(topology), synthetic_trace(tokens=240, layers=2, experts=16, top_k=4)
    evaluation = evaluate(plan(trace, topology, method), trace)
    copies = device_traffic(evaluation, topology)
    between = node_traffic(copies, topology)
    assert not np.diag(copies).any()
    assert np.trace(between) == pytest.approx(evaluation.intra_node_copies)
    assert between.sum() - np.trace(between) == pytest.approx(evaluation.cross_node_copies)
    assert device_load(evaluation).max(axis=1).mean() == pytest.approx(evaluation.load_max_over_mean)
