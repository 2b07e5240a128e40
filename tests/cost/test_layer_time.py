"""The modelled time of a layer."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from grace_moe.cost import layer_time
from grace_moe.cost.layer_time import LayerTraffic, modelled_layer_time
from grace_moe.errors import MismatchError
from grace_moe.topology import Link, Topology

TOPOLOGY = Topology.parse("2x2")


def traffic_of(*, layers=1, devices_per_node=(2, 2), load=None, cross=None, intra=None) -> LayerTraffic:
    """Of 8 tokens, over these links (the same in every layer); what isn't given is 0, and the load even."""
    devices = sum(devices_per_node)
    return LayerTraffic(
        num_tokens=8,
        devices_per_node=devices_per_node,
        cross_node_links=(sparse.csr_array(np.array(cross or [[0] * len(devices_per_node)] * devices)),) * layers,
        intra_node_links=(sparse.csr_array(np.array(intra or [[0] * max(devices_per_node)] * devices)),) * layers,
        device_load=np.array([load or [8 / devices] * devices] * layers, dtype=float),
    )


def slow_links(**changes) -> Topology:
    """2x2: 50 B/s and 1 s across, 100 B/s and 0.5 s inside."""
    across, inside = Link(bandwidth_bytes_per_s=50, latency_s=1), Link(bandwidth_bytes_per_s=100, latency_s=0.5)
    return replace(TOPOLOGY, cross_node=across, intra_node=inside, **changes)


ACROSS = [[0, 1], [0, 1], [1, 0], [1, 0]]
"""Every device sends one copy to its rail peer on the other node."""
INSIDE = [[0, 2], [2, 0], [0, 2], [2, 0]]
"""Every device sends two copies to the other device of its node."""


def dispatch_time(topology=None, **links) -> float:
    """Of as many tokens as were replayed."""
    return modelled_layer_time(traffic_of(**links), topology or slow_links(), batch_tokens=8, row_bytes=100).dispatch


def test_layer_time_by_hand():
    """A copy of 100 bytes from each device across (50 B/s, 1 s), two inside (100 B/s, 0.5 s).
    Loads 6, 2, 4, 4 of 16 pairs at 2 pairs a second."""
    traffic = traffic_of(cross=ACROSS, intra=INSIDE, load=[6, 2, 4, 4])
    got = modelled_layer_time(traffic, slow_links(), batch_tokens=8, row_bytes=100, pairs_per_second=2)
    assert (got.dispatch, got.combine) == ((1 + 2) + (0.5 + 2), (1 + 2) + (0.5 + 2))
    assert (got.compute, got.idle) == (2.0, 1.0)
    assert got.total == 5.5 + 5.5 + 2 + 1


def test_a_stage_ends_with_the_device_that_sends_most():
    """The same four copies, all from device 0: 4 x 2 s."""
    assert dispatch_time(cross=[[0, 4], [0, 0], [0, 0], [0, 0]]) == 1 + 8


def test_or_that_takes_in_most():
    """1x4, one copy from each of three devices to the fourth: it takes in for 3 s, each sender is done after one."""
    topology = replace(Topology.parse("1x4"), intra_node=Link(bandwidth_bytes_per_s=100, latency_s=0.5))
    assert dispatch_time(topology, devices_per_node=(4,), cross=[[0]] * 4, intra=[[0] * 4, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]) == 3.5


def test_sending_and_taking_in_go_on_at_once():
    assert dispatch_time(cross=ACROSS) == dispatch_time(cross=[[0, 1], [0, 0], [0, 0], [0, 0]]) == 1 + 2


def test_layers_are_waited_for_one_by_one():
    """Layer 0 loads device 0, layer 1 device 1: over both they are even, and yet each layer takes 4 x 2 s."""
    links = [[[0, 4], [0, 0], [0, 0], [0, 0]], [[0, 0], [0, 4], [0, 0], [0, 0]]]
    traffic = replace(traffic_of(layers=2), cross_node_links=tuple(sparse.csr_array(np.array(layer)) for layer in links))
    assert modelled_layer_time(traffic, slow_links(), batch_tokens=8, row_bytes=100).dispatch == 1 + 8


def test_a_matrix_of_bandwidths_is_used_where_it_is_given():
    """All links 50 B/s but 0 -> 2, of 10 B/s: its copy takes 10 s, and the others' do not matter. Inside, 2 copies of 2 s."""
    matrix = [[50.0] * 4 for _ in range(4)]
    matrix[0][2] = 10.0
    irregular = slow_links(bandwidth=tuple(map(tuple, matrix)))
    assert dispatch_time(irregular, cross=ACROSS) == 1 + 10
    assert dispatch_time(irregular, cross=[[0, 0], *ACROSS[1:]]) == 1 + 2
    assert dispatch_time(irregular, intra=INSIDE) == 0.5 + 4


def test_unequal_nodes_send_to_the_peer_that_is_there():
    """Nodes of 3 and 1: the three devices of node 0 all send to device 3, which takes in 3 x 2 s."""
    topology = Topology.from_dict({"nodes": [{"devices": [{}] * 3}, {"devices": [{}]}]})
    topology = replace(topology, cross_node=Link(bandwidth_bytes_per_s=50, latency_s=1))
    assert dispatch_time(topology, devices_per_node=(3, 1), cross=[[0, 1]] * 3 + [[0, 0]]) == 1 + 6


def test_layer_time_of_another_shape_is_refused():
    with pytest.raises(MismatchError, match=r"1x4: nodes: 1x4, but the evaluation is of nodes of 2\+2; evaluate again"):
        modelled_layer_time(traffic_of(), Topology.parse("1x4"))


@pytest.mark.parametrize("cells", [1, 3])
def test_blocks_of_links_give_the_same_time(monkeypatch, cells):
    matrix = tuple(tuple(float(10 + a + 4 * b) for b in range(4)) for a in range(4))
    traffic = traffic_of(cross=ACROSS, intra=INSIDE)
    whole = modelled_layer_time(traffic, slow_links(bandwidth=matrix))
    monkeypatch.setattr(layer_time, "_BLOCK_CELLS", cells)
    assert modelled_layer_time(traffic, slow_links(bandwidth=matrix)) == whole


def test_layer_time_is_the_sum_of_its_parts():
    got = modelled_layer_time(traffic_of(layers=2, cross=ACROSS, intra=INSIDE, load=[6, 2, 4, 4]), TOPOLOGY)
    parts = got.to_dict()
    assert parts.pop("modelled_layer_time") == got.total == pytest.approx(sum(parts.values()))
    assert set(parts) == {f"modelled_{part}_time" for part in ("dispatch", "compute", "combine", "idle")}
    assert min(parts.values()) > 0


def test_without_copies_nothing_is_transferred():
    got = modelled_layer_time(traffic_of(), TOPOLOGY)
    assert (got.dispatch, got.combine, got.idle) == (0, 0, 0)
    assert got.compute > 0


def test_twice_the_bandwidth_halves_what_is_not_latency():
    cross, intra = Link(bandwidth_bytes_per_s=1e9, latency_s=0.25), Link(bandwidth_bytes_per_s=1e12, latency_s=0)
    slow = replace(TOPOLOGY, cross_node=cross, intra_node=intra)
    fast = replace(slow, cross_node=replace(cross, bandwidth_bytes_per_s=2e9))
    one, two = (modelled_layer_time(traffic_of(cross=ACROSS), topology) for topology in (slow, fast))
    assert two.dispatch - 0.25 == pytest.approx((one.dispatch - 0.25) / 2)
    assert (two.compute, two.idle) == (one.compute, one.idle)


def test_time_is_linear_in_the_batch_but_for_latency():
    free = Link(bandwidth_bytes_per_s=1e9, latency_s=0)
    topology = replace(TOPOLOGY, cross_node=free, intra_node=free)
    traffic = traffic_of(cross=ACROSS, intra=INSIDE, load=[1, 2, 3, 4])
    one, two = (modelled_layer_time(traffic, topology, batch_tokens=n).total for n in (1000, 2000))
    assert two == pytest.approx(2 * one)
