"""Nodes and devices have room in the drawing."""

import numpy as np
import pytest

from grace_moe.report.cluster_layout import drawing
from grace_moe.topology import Topology


@pytest.mark.parametrize("shape", ["1x1", "2x2", "3x5", "4x4", "8x2", "16x1", "1x16"])
def test_nodes_do_not_overlap_in_the_drawing(shape):
    topology = Topology.parse(shape)
    plan = drawing(topology)
    for n, centre in enumerate(plan.nodes):
        inside = plan.devices[topology.node_of_device == n]
        assert (np.abs(inside - centre).max(axis=1) < plan.half).all()
        for other in plan.nodes[n + 1 :]:
            assert np.abs(other - centre).max() > 2 * plan.half
