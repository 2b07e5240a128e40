"""The placement file: round trips, and every kind of bad file."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_moe.errors import PlacementError, TopologyError
from grace_moe.placement import Placement
from tests.placement.samples import HAND, placements


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(placement=placements())
def test_round_trip_with_the_same_bytes(tmp_path, placement):
    path, again = tmp_path / "a.json", tmp_path / "b.json"
    placement.save(path)
    loaded = Placement.load(path)
    assert loaded == placement
    loaded.save(again)
    assert path.read_bytes() == again.read_bytes()


def saved(tmp_path, placement=HAND):
    path = tmp_path / "plan.json"
    placement.save(path)
    return path, json.loads(path.read_text())


def put(value, where, new):
    """The value with what is at the path `where` replaced (or, for ..., deleted)."""
    value = copy.deepcopy(value)
    inner = value
    for step in where[:-1]:
        inner = inner[step]
    if new is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = new
    return value


def refused(path, kind=PlacementError) -> str:
    with pytest.raises(kind) as error:
        Placement.load(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    assert "; " in text
    assert error.value.exit_code == 3
    return text.removeprefix(f"{path}: ")


L0 = ("layers", 0)


BAD = [
    (("format",), ..., "format: None is not 'grace-moe.placement'; give a placement that `grace-moe plan` wrote"),
    (("format",), "grace-moe.trace", "format: 'grace-moe.trace' is not 'grace-moe.placement'"),
    (("format",), ["x" * 10_000], "format: ['xxx"),
    (("version",), 2, "version: 2 is newer than 1; upgrade grace-moe"),
    (("version",), 10**100, "version: 1000"),
    (("version",), "1", "version: '1' is not a version number"),
    (("version",), True, "version: True is not a version number"),
    (("version",), 0, "version: 0 is not a version number"),
    (("version",), ..., "version: None is not a version number"),
    (("num_experts",), 5, "layer 0: devices_of_expert: 4 experts instead of 5; give every expert a row: none may be lost"),
    (("num_experts",), True, "num_experts: True is not in 1..32767"),
    (("num_experts",), 10**30, "num_experts: 1000000000000000000000000000000 is not in 1..32767"),
    (("num_experts",), 4.0, "num_experts: 4.0 is not in 1..32767"),
    (("num_experts",), ..., "num_experts: None is not in 1..32767"),
    (("model",), 3, "model: 3 is not text"),
    (("replica_choice",), "nearest", "replica_choice: 'nearest' is unknown; use one of tar, wrr"),
    (("replica_choice",), ["tar"], "replica_choice: ['tar'] is not text"),
    (("topology",), ..., "topology: NoneType is not an object"),
    (("topology",), "2x2", "topology: str is not an object"),
    (("provenance",), [], "provenance: not an object"),
    (("layers",), ..., "layers: missing or not a list"),
    (("layers",), {}, "layers: missing or not a list"),
    (("layers",), [], "layers: none, or a layer_id twice; give each MoE layer once"),
    (("layers", 1, "layer_id"), 0, "layers: none, or a layer_id twice; give each MoE layer once"),
    (L0, "ab", "layers[0]: str is not an object"),
    (("layers", 1), None, "layers[1]: NoneType is not an object"),
    ((*L0, "layer_id"), ..., "layers[0].layer_id: None is not a layer number"),
    ((*L0, "layer_id"), True, "layers[0].layer_id: True is not a layer number"),
    ((*L0, "layer_id"), -1, "layers[0].layer_id: -1 is not a layer number"),
    ((*L0, "layer_id"), 10**20, "layers[0].layer_id: 100000000000000000000 is not a layer number"),
    ((*L0, "devices_of_expert"), ..., "layers[0].devices_of_expert: missing, or not a list of lists"),
    ((*L0, "devices_of_expert"), {"0": [0]}, "layers[0].devices_of_expert: missing, or not a list of lists"),
    ((*L0, "devices_of_expert"), [0, 1, 2, 3], "layers[0].devices_of_expert: missing, or not a list of lists"),
    ((*L0, "devices_of_expert", 3), ..., "layer 0: devices_of_expert: 3 experts instead of 4; give every expert a row: none may be lost"),
    ((*L0, "devices_of_expert", 2), [], "layer 0: devices_of_expert[2]: the expert is on no device; place every expert at least once"),
    ((*L0, "devices_of_expert", 2), [4], "layer 0: devices_of_expert[2]: names device 4; the topology has devices 0..3"),
    ((*L0, "devices_of_expert", 2), [-1], "layer 0: devices_of_expert[2]: names device -1; the topology has devices 0..3"),
    ((*L0, "devices_of_expert", 2), [10**30], "layer 0: devices_of_expert[2]: names device 1000"),
    ((*L0, "devices_of_expert", 1), [3, 3], "layer 0: devices_of_expert[1]: has two replicas on one device (3, 3); keep at most one"),
    ((*L0, "devices_of_expert", 1), [1, 3.0], "layers[0].devices_of_expert: not all are whole numbers"),
    ((*L0, "devices_of_expert", 1), [1, True], "layers[0].devices_of_expert: not all are whole numbers"),
    ((*L0, "devices_of_expert", 1), "13", "layers[0].devices_of_expert: missing, or not a list of lists"),
    ((*L0, "replica_weights"), ..., "layers[0].replica_weights: missing, or not a list of lists"),
    ((*L0, "replica_weights", 3), ..., "layer 0: replica_weights: 3 experts instead of 4"),
    ((*L0, "replica_weights", 1), [1.0], "layer 0: replica_weights[1]: 1 weights for 2 replicas; give each replica its weight"),
    ((*L0, "replica_weights", 1), [0.5, 0.6], "layer 0: replica_weights[1]: (0.5, 0.6) are not shares; give weights of 0 or more that sum"),
    ((*L0, "replica_weights", 1), [-0.5, 1.5], "layer 0: replica_weights[1]: (-0.5, 1.5) are not shares"),
    ((*L0, "replica_weights", 1), [10**400, 0], "layers[0].replica_weights: a number is out of range"),
    ((*L0, "replica_weights", 1), [True, False], "layers[0].replica_weights: not all are numbers"),
    ((*L0, "replica_weights", 1), ["0.5", "0.5"], "layers[0].replica_weights: not all are numbers"),
    ((*L0, "replica_weights", 1), [None, 1], "layers[0].replica_weights: not all are numbers"),
    ((*L0, "decode_weights", 3), ..., "layer 0: decode_weights: 3 experts instead of 4; give every expert a row"),
    ((*L0, "decode_weights", 1), [1.0], "layer 0: decode_weights[1]: 1 weights for 2 replicas; give each replica its weight"),
    ((*L0, "decode_weights", 1), [0, 0], "layer 0: decode_weights[1]: (0.0, 0.0) are not shares; give weights of 0 or more that sum to 1"),
    ((*L0, "decode_weights", 1), [-1, 2], "layer 0: decode_weights[1]: (-1.0, 2.0) are not shares"),
    ((*L0, "decode_weights", 1), [10**400, 0], "layers[0].decode_weights: a number is out of range"),
    ((*L0, "decode_weights", 1), [False, True], "layers[0].decode_weights: not all are numbers"),
    ((*L0, "decode_weights", 1), [None, 1], "layers[0].decode_weights: not all are numbers"),
    ((*L0, "decode_weights"), {"1": [0, 1]}, "layers[0].decode_weights: missing, or not a list of lists"),
    ((*L0, "decode_weights"), [0, 1, 2, 3], "layers[0].decode_weights: missing, or not a list of lists"),
    ((*L0, "decode_weights"), "even", "layers[0].decode_weights: missing, or not a list of lists"),
    ((*L0, "node_prices"), [0.5], "layer 0: node_prices: [0.5] are not 2 prices; give 0..15.0 a node, or none"),
    ((*L0, "node_prices"), [0, -1], "layer 0: node_prices: [0.0, -1.0] are not 2 prices"),
    ((*L0, "node_prices"), [0, 16], "layer 0: node_prices: [0.0, 16.0] are not 2 prices"),
    ((*L0, "node_prices"), [0, 10**400], "layers[0].node_prices: a number is out of range"),
    ((*L0, "node_prices"), "free", "layers[0].node_prices: missing, or not a list of lists"),
    ((*L0, "replica_choice"), "best", "layer 0: replica_choice: 'best' is unknown; use one of tar, wrr, joint"),
    ((*L0, "replica_choice"), 3, "layers[0].replica_choice: 3 is not text"),
    ((*L0, "replica_wieghts"), [[1.0]] * 4, "layers[0].replica_wieghts: unknown key; it may have layer_id, devices_of_expert"),
    (("layer",), [], "layer: unknown key; it may have format, version, model"),
]


@pytest.mark.parametrize(("where", "new", "text"), BAD)
def test_what_is_wrong_is_named(tmp_path, where, new, text):
    path, value = saved(tmp_path)
    path.write_text(json.dumps(put(value, where, new)))
    found = refused(path)
    assert found.startswith(text)
    assert len(found) < 1000


@pytest.mark.parametrize(
    ("where", "new", "text"),
    [
        (("topology", "nodes"), [], "topology: nodes: no nodes"),
        (("topology", "nodes", 0), 3, "topology: nodes[0]: int is not an object"),
        (("topology", "bandwith"), [], "topology: topology.bandwith: unknown key"),
        (("topology", "links", "cross_node", "latency_s"), None, "topology: links.cross_node.latency_s: missing"),
    ],
)
def test_its_topology_is_checked_too(tmp_path, where, new, text):
    path, value = saved(tmp_path)
    path.write_text(json.dumps(put(value, where, new)))
    assert refused(path, TopologyError).startswith(text)


def test_many_layers_on_many_devices_are_refused_before_they_are_counted(tmp_path):
    """10,000 layers of one expert on 4,096 devices: a table of them takes 312 MiB, and the file has 0.9 MB."""
    path, value = saved(tmp_path)
    layer = {"devices_of_expert": [[0]], "replica_weights": [[1]]}
    value |= {
        "num_experts": 1,
        "topology": {"nodes": [{"devices": [{}] * 4096}]},
        "layers": [{"layer_id": i, **layer} for i in range(10_000)],
    }
    path.write_text(json.dumps(value))
    assert refused(path).startswith("layers x devices: asks for 312 MiB of memory, and a file of ")
    few = {"nodes": [{"devices": [{}]}]}
    path.write_text(json.dumps(value | {"topology": few}))
    assert len(Placement.load(path).layers) == 10_000
    path.write_text(json.dumps(value | {"topology": few, "layers": [{"layer_id": i, **layer} for i in range(10_001)]}))
    assert refused(path) == "layers: 10001 are over the limit of 10000; is it the right file?"


def test_a_smaller_topology_leaves_devices_missing(tmp_path):
    path, value = saved(tmp_path)
    path.write_text(json.dumps(put(value, ("topology", "nodes", 1), ...)))
    assert refused(path) == "layer 0: devices_of_expert[1]: names device 3; the topology has devices 0..1"


def test_what_may_be_missing(tmp_path):
    path, value = saved(tmp_path)
    path.write_text(json.dumps({n: v for n, v in value.items() if n not in ("model", "provenance", "replica_choice")}))
    placement = Placement.load(path)
    assert (placement.model, placement.provenance, placement.replica_choice) == ("", {}, "tar")


@pytest.mark.parametrize("text", ["null", "[]", "3", '"grace-moe.placement"', "{}"])
def test_other_json_is_not_a_placement(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert "is not 'grace-moe.placement'" in refused(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_numbers_that_json_does_not_know(tmp_path, number):
    path, _ = saved(tmp_path)
    path.write_text(path.read_text().replace('"seed": 0', f'"seed": {number}'))
    assert "not valid JSON" in refused(path)


def test_a_truncated_file(tmp_path):
    path, _ = saved(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:size])
        assert "not valid JSON" in refused(path)


def test_a_placement_without_decode_weights_has_no_such_field(tmp_path):
    _, value = saved(tmp_path)
    assert "decode_weights" in value["layers"][0]
    assert "decode_weights" not in value["layers"][1]


def paths_of(value, prefix=()):
    """Every place in a JSON value."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        return
    for name, item in inner:
        yield (*prefix, name)
        yield from paths_of(item, (*prefix, name))


scalars = st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False) | st.text(max_size=5)


anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_anywhere_it_loads_and_saves_or_gives_an_error_of_ours(tmp_path, data):
    path, value = saved(tmp_path)
    for _ in range(data.draw(st.integers(1, 2))):
        value = put(value, data.draw(st.sampled_from(list(paths_of(value)))), data.draw(anything | st.just(...)))
    path.write_text(json.dumps(value))
    placement, problem = None, ""
    try:
        placement = Placement.load(path)
    except (PlacementError, TopologyError) as error:
        problem = str(error)
    if placement is None:
        assert problem.startswith(f"{path}: ")
        assert len(problem.splitlines()) == 1
        assert len(problem) < 2000
    else:
        placement.save(path)
        assert Placement.load(path) == placement
