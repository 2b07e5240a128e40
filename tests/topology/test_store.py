"""The topology file: round trips, and whatever else a file may hold."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_moe.errors import GraceError, TopologyError
from grace_moe.topology import Topology
from tests.topology.samples import names, positive, topologies


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(topology=topologies())
def test_round_trip(tmp_path, topology):
    path = tmp_path / "t.json"
    topology.save(path)
    first = path.read_bytes()
    assert Topology.parse(str(path)) == topology
    assert Topology.from_dict(topology.to_dict()) == topology
    Topology.parse(str(path)).save(path)
    assert path.read_bytes() == first


def good(**changes):
    value = {"nodes": [{"name": "a", "devices": [{"name": "d", "memory_bytes": 8, "relative_speed": 1.0}, {}]}]}
    return value | changes


def device(**changes):
    return good(nodes=[{"devices": [changes]}])


def link(**changes):
    return good(links={"cross_node": {"bandwidth_bytes_per_s": 1e9, "latency_s": 0} | changes})


BAD = [
    (None, "topology: NoneType is not an object"),
    ([], "topology: list is not an object"),
    ("2x4", "topology: str is not an object"),
    ({}, "nodes: missing"),
    (good(nodes={}), "nodes: dict is not a list"),
    (good(nodes="ab"), "nodes: str is not a list"),
    (good(nodes=[]), "nodes: no nodes, or a node without devices; give each node at least one device"),
    (good(nodes=[{"devices": []}]), "nodes: no nodes, or a node without devices"),
    (good(nodes=[[]]), "nodes[0]: list is not an object"),
    (good(nodes=[{"devices": [{}]}, {}]), "nodes[1].devices: missing"),
    (good(nodes=[{"name": 3, "devices": [{}]}]), "nodes[0].name: int is not text"),
    (good(nodes=[{"devices": 4}]), "nodes[0].devices: int is not a list"),
    (good(nodes=[{"devices": [{}, 4]}]), "nodes[0].devices[1]: int is not an object"),
    (good(nodes=[{"devices": [{}] * 4097}]), "nodes: 4097 devices are over the limit of 4096; is it the right file?"),
    (device(name=None), "nodes[0].devices[0].name: NoneType is not text"),
    (device(memory_bytes="80GB"), "nodes[0].devices[0].memory_bytes: str is not a finite number"),
    (device(memory_bytes=True), "nodes[0].devices[0].memory_bytes: bool is not a finite number"),
    (device(memory_bytes=10**400), "nodes[0].devices[0].memory_bytes: int is not a finite number"),
    (device(memory_bytes=0), "nodes.node0.devices.device0: speed and memory must be positive; correct relative_speed or memory_bytes"),
    (device(memory_bytes=math.inf), "nodes[0].devices[0].memory_bytes: float is not a finite number"),
    (device(relative_speed=math.nan), "nodes[0].devices[0].relative_speed: float is not a finite number"),
    (device(relative_speed=None), "nodes[0].devices[0].relative_speed: missing"),
    (device(relative_speed=-1), "nodes.node0.devices.device0: speed and memory must be positive"),
    (device(memory_bytes=8.5), "nodes[0].devices[0].memory_bytes: 8.5 is not a whole number"),
    (device(memroy_bytes=8), "nodes[0].devices[0].memroy_bytes: unknown key; it may have name, memory_bytes, relative_speed"),
    (good(node=[]), "topology.node: unknown key; it may have nodes, links, bandwidth, hardware, calibration"),
    (good(nodes=[{"device": [{}]}]), "nodes[0].device: unknown key; it may have name, devices"),
    (link(latency=1), "links.cross_node.latency: unknown key; it may have bandwidth_bytes_per_s, latency_s, shared_bytes_per_s"),
    (good(links=[]), "links: list is not an object"),
    (good(links=None), "links: NoneType is not an object"),
    (good(links={"cross_nodes": {}}), "links.cross_nodes: unknown link; name intra_node and cross_node"),
    (good(links={"rack": {"groups": [[0, 0]], "bandwidth_bytes_per_s": 1, "latency_s": 0}}), "links.rack: a device is in two groups"),
    (
        good(links={"rack": {"groups": [[2]], "bandwidth_bytes_per_s": 1, "latency_s": 0}}),
        "links.rack: a device is in two groups, or there",
    ),
    (good(links={"rack": {"groups": [0], "bandwidth_bytes_per_s": 1, "latency_s": 0}}), "links.rack.groups[0]: int is not a list"),
    (good(links={"rack": {"devices_per_group": 0, "bandwidth_bytes_per_s": 1, "latency_s": 0}}), "links.rack.devices_per_group: 0 is"),
    (good(links={"rack": {"devices_per_group": 2, "latency_s": 0}}), "links.rack.bandwidth_bytes_per_s: missing"),
    (link(shared_bytes_per_s=0), "links.cross_node: Link("),
    (good(hardware=3), "hardware: int is not text"),
    (good(calibration=[]), "calibration: list is not an object"),
    (good(links={"cross_node": 3}), "links.cross_node: int is not an object"),
    (good(links={"cross_node": {"latency_s": 0}}), "links.cross_node.bandwidth_bytes_per_s: missing"),
    (
        link(bandwidth_bytes_per_s=0),
        "links.cross_node: Link(bandwidth_bytes_per_s=0.0, latency_s=0.0, shared_bytes_per_s=None) is out of range; give a positive",
    ),
    (link(bandwidth_bytes_per_s=math.nan), "links.cross_node.bandwidth_bytes_per_s: float is not a finite number"),
    (link(bandwidth_bytes_per_s=math.inf), "links.cross_node.bandwidth_bytes_per_s: float is not a finite number"),
    (link(bandwidth_bytes_per_s=10**400), "links.cross_node.bandwidth_bytes_per_s: int is not a finite number"),
    (link(latency_s=-1e-9), "links.cross_node: Link("),
    (link(latency_s="1"), "links.cross_node.latency_s: str is not a finite number"),
    (good(bandwidth=3), "bandwidth: int is not a list"),
    (good(bandwidth=[[1.0, 1.0], 3]), "bandwidth[1]: int is not a list"),
    (good(bandwidth=[[1.0, 1.0], [1.0, False]]), "bandwidth[1][1]: bool is not a finite number"),
    (good(bandwidth=[[1.0, 1.0], [1.0]]), "bandwidth: not a [devices, devices] matrix of positive numbers; give one row a device"),
    (good(bandwidth=[]), "bandwidth: not a [devices, devices] matrix"),
    (good(bandwidth=[[1.0, 1.0], [1.0, 0.0]]), "bandwidth: not a [devices, devices] matrix"),
]


@pytest.mark.parametrize(("value", "text"), BAD, ids=[text[:60] for _, text in BAD])
def test_what_is_wrong_is_named(value, text):
    with pytest.raises(TopologyError) as error:
        Topology.from_dict(value, source="cluster.json")
    assert str(error.value).startswith(f"cluster.json: {text}")
    assert len(str(error.value).splitlines()) == 1
    assert "; " in str(error.value)


def test_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "cluster.json"
    path.write_text('{"nodes": [{"devices": [{"memory_bytes": 8, "memory_bytes": 9}]}]}')
    with pytest.raises(TopologyError, match="the key 'memory_bytes' is there twice"):
        Topology.parse(str(path))


def test_hand_written_numbers_may_be_short():
    topology = Topology.from_dict(device(memory_bytes=8e10))
    assert topology.nodes[0].devices[0].memory_bytes == 80_000_000_000
    assert type(topology.nodes[0].devices[0].memory_bytes) is int


def test_a_hostile_name_stays_on_one_short_line():
    value = good(nodes=[{"name": "a\nb\x1b" + "c" * 10_000, "devices": [{"relative_speed": -1}]}])
    with pytest.raises(TopologyError) as error:
        Topology.from_dict(value)
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


def test_a_missing_file():
    with pytest.raises(TopologyError, match=r"none\.json: file: No such file or directory; check the path"):
        Topology.parse("/nowhere/none.json")


scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5) | st.just("x" * 10_000)
)


anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)


def shaped(fields):
    """Objects with our field names and, here and there, anything for a value."""
    return st.fixed_dictionaries({}, optional={name: anything | value for name, value in fields.items()}) | anything


hostile_devices = shaped({"name": names, "memory_bytes": st.integers(1), "relative_speed": positive})


hostile_nodes = shaped({"name": names, "devices": st.lists(hostile_devices, max_size=2)})


hostile_links = shaped({"bandwidth_bytes_per_s": positive, "latency_s": positive})


hostile_topologies = shaped(
    {
        "nodes": st.lists(hostile_nodes, max_size=2),
        "links": shaped({"intra_node": hostile_links, "cross_node": hostile_links}),
        "bandwidth": st.lists(st.lists(positive, max_size=2), max_size=2),
    }
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(value=hostile_topologies)
def test_whatever_a_file_holds_it_loads_and_saves_or_gives_an_error_of_ours(tmp_path, value):
    topology, problem = None, ""
    try:
        topology = Topology.from_dict(value)
    except TopologyError as error:
        problem = str(error)
    if topology is None:
        assert len(problem.splitlines()) == 1
        assert len(problem) < 2000
    else:
        assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology
        topology.save(tmp_path / "t.json")


def test_errors_of_every_kind_are_graceful():
    assert issubclass(TopologyError, GraceError)
    assert TopologyError.exit_code == 3
