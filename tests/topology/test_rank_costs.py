"""A matrix of costs between ranks is a topology: its nodes are found, and its costs are bandwidths in their ratio."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.errors import TopologyError
from grace_moe.topology import Topology


def costs(nodes, size, inside, across):
    block = np.arange(nodes * size) // size
    matrix = np.where(block[:, None] == block[None, :], float(inside), float(across))
    np.fill_diagonal(matrix, 0)
    return matrix


def read(matrix, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"rank_cost_matrix": np.asarray(matrix).tolist()}))
    return Topology.parse(str(path))


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 5), st.integers(6, 60))
def test_nodes_are_found_and_links_are_in_the_ratio_of_costs(nodes, size, inside, across):
    topology = Topology.from_dict({"rank_cost_matrix": costs(nodes, size, inside, across).tolist()})
    assert topology.shape == f"{nodes}x{size}"
    assert topology.bandwidth[0][1] == pytest.approx(topology.intra_node.bandwidth_bytes_per_s)
    if nodes > 1:
        assert topology.bandwidth[0][-1] == pytest.approx(topology.bandwidth[0][1] * inside / across)
        assert topology.cross_node.bandwidth_bytes_per_s == pytest.approx(topology.bandwidth[0][-1])


def test_the_steepest_step_is_where_nodes_end(tmp_path):
    """Pairs of sockets at 1, nodes of four at 2, racks of eight at 20."""
    matrix = costs(8, 2, 1, 20)
    matrix[costs(4, 4, 1, 0) > 0] = 2
    matrix[costs(8, 2, 1, 0) > 0] = 1
    assert read(matrix, tmp_path).shape == "4x4"


def test_order_and_direction_are_kept(tmp_path):
    """The example of the proposal: no two ranks are nearer than others both ways, so that they are one node."""
    topology = read([[0, 1, 4], [2, 0, 3], [5, 6, 0]], tmp_path)
    assert topology.shape == "1x3"
    rates = np.array(topology.bandwidth)
    assert rates[0, 1] / rates[2, 1] == pytest.approx(6)
    assert rates[1, 0] / rates[0, 1] == pytest.approx(1 / 2)


def test_free_links_inside_nodes(tmp_path):
    topology = read(costs(2, 2, 0, 3), tmp_path)
    assert topology.shape == "2x2"
    assert read([[0]], tmp_path).shape == "1x1"
    assert Topology.from_dict(topology.to_dict()).bandwidth == topology.bandwidth


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ([[0, 1]], "not square"),
        ([], "not square"),
        ([[0, 1], [1, 1]], "a rank's cost to itself is not 0"),
        ([[0, -1], [1, 0]], "a cost is below 0"),
        ([[0, "near"], [1, 0]], "not a finite number"),
        (7, "not a list"),
    ],
)
def test_what_is_no_matrix_of_costs_is_refused(matrix, problem):
    with pytest.raises(TopologyError, match=problem):
        Topology.from_dict({"rank_cost_matrix": matrix})
