"""Topology: shorthands, numbering, and values out of range."""

import math

import pytest

from grace_moe.errors import TopologyError
from grace_moe.topology import DEFAULT_PRESET, PRESETS, Device, Link, Node, Topology
from tests.topology.samples import LINK


def test_shorthand():
    topology = Topology.parse("2x4")
    assert (topology.num_nodes, topology.num_devices, topology.devices_per_node, topology.shape) == (2, 8, 4, "2x4")
    assert (topology.intra_node, topology.cross_node) == PRESETS[DEFAULT_PRESET]
    assert topology.relative_speed.tolist() == [1.0] * 8
    assert Topology.parse("1x1:h100-400g").cross_node == PRESETS["h100-400g"][1]


def test_devices_are_numbered_node_by_node():
    """Nodes of 3, 1 and 2 devices."""
    topology = Topology.from_dict({"nodes": [{"devices": [{}] * n} for n in (3, 1, 2)]})
    assert topology.node_of_device.tolist() == [0, 0, 0, 1, 2, 2]
    assert [list(topology.devices_of_node(n)) for n in range(3)] == [[0, 1, 2], [3], [4, 5]]
    assert topology.shape == "3+1+2"
    assert topology.devices_per_node is None
    assert [d.name for d in topology.nodes[2].devices] == ["device0", "device1"]


@pytest.mark.parametrize(
    "text", ["", "2", "x", "2x", "x2", "2X4", "2 x 4", "-2x4", "2x4x8", "2x4:", "two by four", "2x4\n", "nu\0ll", "\ud800"]
)
def test_nonsense_text_names_both_forms(text):
    with pytest.raises(TopologyError, match=r"neither NxG nor a \.json file; write 2x4 for 2 nodes of 4 devices, or name a file") as error:
        Topology.parse(text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["0x4", "4x0", "999999x999999", "4097x1"])
def test_counts_out_of_range(text):
    with pytest.raises(TopologyError, match="is out of range; use NxG, such as 2x4"):
        Topology.parse(text)


def test_unknown_preset():
    with pytest.raises(TopologyError, match="preset: 'dgx' is unknown; use one of a100-25g, h100-400g"):
        Topology.parse("2x4:dgx")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_values_that_no_file_could_hold_are_refused_in_python_too(bad):
    node = (Node(name="n", devices=(Device(name="d"),)),)
    for changes in (
        {"intra_node": Link(bandwidth_bytes_per_s=bad, latency_s=0)},
        {"nodes": (Node(name="n", devices=(Device(name="d", relative_speed=bad),)),)},
        {"bandwidth": ((bad,),)},
    ):
        with pytest.raises(TopologyError):
            Topology(**{"nodes": node, "intra_node": LINK, "cross_node": LINK} | changes)
