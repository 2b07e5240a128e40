"""Where tokens are expected to come from, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe.planning.grace.problem import LayerProblem, source_chances
from grace_moe.topology import Topology

PROBLEM = LayerProblem(
    layer_id=0,
    ids=np.zeros((4, 1), np.int64),
    unit=np.array([0, 1, 2, 0]),
    experts=2,
    topology=Topology.parse("2x2"),
    slots=1,
    imbalance_price=4.0,
    effort=1.0,
    seed=0,
    seed_of_days=0,
)


def test_requests_are_dealt_to_devices_in_turn():
    """Three requests: on devices 0 and 1, both on node 0, and on device 2."""
    assert source_chances(PROBLEM) == pytest.approx(np.tile([2 / 3, 1 / 3], (4, 1)))


def test_tokens_are_dealt_to_all_devices_where_requests_are_unknown():
    assert source_chances(replace(PROBLEM, requests_unknown=True)) == pytest.approx(np.full((4, 2), 0.5))


def test_tokens_come_from_the_node_that_their_request_is_sent_to():
    """Requests 0 and 2 are sent to node 1."""
    chances = source_chances(replace(PROBLEM, node_of_request=np.array([1, 0, 1])))
    assert chances == pytest.approx(np.array([[0, 1], [1, 0], [0, 1], [0, 1]]))
