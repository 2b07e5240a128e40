"""Slot maps in the engines' formats: whole, exact, and the same again after a round trip."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given

from grace_moe.cost.sent import SENDS
from grace_moe.engines import EXPORTERS, MAP_IMPORTERS, Hints, SlotMap, equalise, export_loads
from grace_moe.engines.backends import SGLANG, VLLM
from grace_moe.engines.tensorrt_llm.balancer import KEYS, export_yaml
from grace_moe.engines.vllm.formats import export_map
from grace_moe.errors import MismatchError, PlacementError, UsageError
from grace_moe.topology import Topology
from tests.engines.plans import placement as plans_placement
from tests.engines.samples import placements, sets

SLOTS = SlotMap(physical_to_logical=np.array([[0, 1, 2, 0], [2, 1, 0, 2]], dtype=np.int32), layer_ids=(1, 3), num_experts=3, num_ranks=2)
PLACED = plans_placement()
HINTS = Hints(num_experts=3, layer_ids=(1, 3), num_hidden_layers=5)


@pytest.mark.parametrize("engine", EXPORTERS)
@given(placement=placements())
def test_what_was_exported_is_imported_as_the_same(tmp_path_factory, engine, placement):
    slots = SlotMap.of(equalise(placement).placement)
    hints = Hints(num_experts=placement.num_experts, layer_ids=placement.layer_ids, num_hidden_layers=12)
    exported = EXPORTERS[engine](slots, hints, ())
    path = tmp_path_factory.mktemp("map") / "map.json"
    path.write_bytes(exported.data)
    again = MAP_IMPORTERS[engine](path, slots.num_ranks, hints)
    assert (again.physical_to_logical == slots.physical_to_logical).all()
    assert (again.layer_ids, again.num_experts, again.num_ranks) == (slots.layer_ids, slots.num_experts, slots.num_ranks)
    back = again.to_placement(placement.topology)
    assert sets(back) == sets(equalise(placement).placement)
    assert EXPORTERS[engine](SlotMap.of(back), hints, ()).data == exported.data


def test_sglang_has_a_row_for_each_decoder_layer_and_no_other_key():
    exported = EXPORTERS["sglang"](SLOTS, HINTS, ())
    assert json.loads(exported.data) == {"physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2, 0], [2, 1, 0, 2], [0, 1, 2, 0]]}
    assert "--ep-size 2 " in exported.launch
    assert "--ep-num-redundant-experts 1 " in exported.launch
    assert exported.launch.endswith("--moe-a2a-backend deepep --deepep-mode auto --ep-dispatch-algorithm static")
    assert exported.notes == ()


def test_sglang_without_the_models_layers_says_what_it_assumed():
    exported = EXPORTERS["sglang"](SLOTS, Hints(), ())
    assert len(json.loads(exported.data)["physical_to_logical_map"]) == 4
    assert exported.notes == ("4 decoder layers assumed, up to the last planned: --model says",)


def test_sglang_refuses_a_layer_that_the_model_has_not():
    with pytest.raises(MismatchError, match=r"plans layer 3, but the model has decoder layers 0\.\.2"):
        EXPORTERS["sglang"](SLOTS, Hints(num_hidden_layers=3), ())


def test_sglang_takes_rows_in_order_for_layers_as_any_others(tmp_path):
    path = tmp_path / "location.json"
    path.write_bytes(EXPORTERS["sglang"](SLOTS, HINTS, ()).data)
    every = MAP_IMPORTERS["sglang"](path, 2, Hints())  # layer 1 has a plan that happens to be in order
    assert every.layer_ids == (0, 1, 2, 3, 4)
    assert every.notes == ("4 rows in order, first [0]: taken as layers with experts; if some are dense, --model or --layers says so",)
    assert MAP_IMPORTERS["sglang"](path, 2, HINTS).layer_ids == (1, 3)


def test_tensorrt_llm_has_its_three_keys_and_the_extra_layers():
    value = yaml.safe_load(EXPORTERS["tensorrt-llm"](SLOTS, HINTS, (5,)).data)
    assert tuple(value) == KEYS
    assert value == {
        "num_slots": 4,
        "initial_global_assignments": {1: [0, 1, 2, 0], 3: [2, 1, 0, 2], 5: [0, 1, 2, 0]},
        "layer_updates_per_iter": 0,
    }


def test_tensorrt_llm_refuses_an_extra_layer_with_a_plan():
    with pytest.raises(MismatchError, match="layer 3 has a plan"):
        export_yaml(SLOTS, extra_layers=(3,))


@pytest.mark.parametrize(
    ("backend", "vllm", "sglang"),
    [
        ("", "deepep_high_throughput", "deepep --deepep-mode auto"),
        ("hierarchical", "allgather_reducescatter --enforce-eager", "deepep --deepep-mode auto"),
        ("deepep_low_latency", "deepep_low_latency", "deepep --deepep-mode low_latency"),
        ("allgather", "allgather_reducescatter", "none --ep-dispatch-algorithm dynamic"),
    ],
)
def test_launch_lines_name_the_backend_that_the_plan_is_for(backend, vllm, sglang):
    slots = SlotMap.of(replace(PLACED, provenance={"backend": backend} if backend else {}))
    of_vllm, of_sglang = (EXPORTERS[engine](slots, Hints(num_hidden_layers=4), ()) for engine in ("vllm", "sglang"))
    assert f"--all2all-backend {vllm} " in of_vllm.launch
    assert of_vllm.launch.startswith("GRACE_MOE_DISPATCH=hierarchical " if backend == "hierarchical" else "GRACE_MOE_PLAN=")
    assert f"--moe-a2a-backend {sglang}" in of_sglang.launch
    gains = ("this backend sends every token to every rank: the plan balances, and saves no traffic",) if backend == "allgather" else ()
    assert of_vllm.notes == of_sglang.notes == gains


def test_every_backend_that_a_plan_may_be_for_has_its_flags():
    assert set(VLLM) == set(SGLANG) == {"", *SENDS}


def test_a_backend_that_no_engine_is_known_to_have_is_refused():
    with pytest.raises(UsageError, match="planned for the backend 'pigeons', which is unknown; plan with one of hierarchical, "):
        EXPORTERS["vllm"](SlotMap.of(replace(PLACED, provenance={"backend": "pigeons"})), HINTS, ())


def test_vllm_counts_moe_layers_only():
    exported = EXPORTERS["vllm"](SLOTS, HINTS, ())
    assert json.loads(exported.data) == [[0, 1, 2, 0], [2, 1, 0, 2]]
    assert '"num_redundant_experts": 1' in exported.launch
    assert exported.launch.startswith("GRACE_MOE_PLAN=PLAN vllm serve MODEL --data-parallel-size 2 ")


def test_vllm_refuses_more_replicas_than_its_table_takes():
    ranks = 1025
    slots = SlotMap(physical_to_logical=np.zeros((1, ranks), dtype=np.int32), layer_ids=(0,), num_experts=1, num_ranks=ranks)
    with pytest.raises(MismatchError, match="an expert has 1025 replicas, and vLLM's table takes 1024"):
        export_map(slots)


def test_vllm_loads(tmp_path):
    (tmp_path / "loads.npy").write_bytes(export_loads([[1, 2], [3, 4]]))
    loads = np.load(tmp_path / "loads.npy", allow_pickle=False)
    assert loads.dtype == np.int64
    assert loads.tolist() == [[1, 2], [3, 4]]


def test_vllm_ascend_by_hand():
    value = json.loads(EXPORTERS["vllm-ascend"](SLOTS, HINTS, ()).data)
    assert value["moe_layer_count"] == 2
    assert value["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [{"device_id": 0, "device_expert": [2, 1]}, {"device_id": 1, "device_expert": [0, 2]}],
    }


BROKEN = [
    ("vllm", b"[[0, 1], [0]]", "1 slots, and row 0 has 2"),
    ("vllm", b"[[0, 1.5]]", "not all are expert ids"),
    ("vllm", b"[[0, 40000]]", "not all are expert ids"),
    ("vllm", b"[[]]", "none"),
    ("vllm", b"{}", "not a list of lists"),
    ("vllm", b"[[0, 1, 2]]", "not divisible by 2 ranks"),
    ("vllm", b"[[0, 2]]", "expert 1 is in no slot"),
    ("vllm", b"[[0,", "not valid JSON"),
    ("sglang", b'{"physical_to_logical_map": [[0, 1]], "x": 1}', "not the only key"),
    ("sglang", b"[]", "missing"),
    ("tensorrt-llm", b"num_slots: 2\nep_size: 2\n", "others than TensorRT-LLM takes"),
    ("tensorrt-llm", b"num_slots: 3\ninitial_global_assignments: {0: [0, 1]}\n", "3, and a layer has 2"),
    ("tensorrt-llm", b"num_slots: 2\n", "missing"),
    ("tensorrt-llm", b"a: [", "not valid YAML"),
    ("tensorrt-llm", b"num_slots: &a [1]\ninitial_global_assignments: *a\n", "references are not taken"),
    ("tensorrt-llm", b"num_slots: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ("vllm-ascend", b'{"moe_layer_count": 2, "layer_list": [{}]}', "1 layers, not moe_layer_count 2"),
    (
        "vllm-ascend",
        b'{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_list": [{}]}]}',
        "1 devices, and not the 2 of the topology",
    ),
    (
        "vllm-ascend",
        b'{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_list": [{"device_id": 0, "device_expert": [0]}, {"device_id": 1}]}]}',
        "not device 1",
    ),
]


@pytest.mark.parametrize(("engine", "data", "says"), BROKEN)
def test_broken_files_are_refused_in_a_sentence(tmp_path, engine, data, says):
    path = tmp_path / "map"
    path.write_bytes(data)
    with pytest.raises(PlacementError, match=says) as error:
        MAP_IMPORTERS[engine](path, 2, Hints())
    assert str(path) in str(error.value)


@pytest.mark.parametrize("engine", MAP_IMPORTERS)
def test_a_missing_file_is_named(tmp_path, engine):
    with pytest.raises(PlacementError, match="No such file"):
        MAP_IMPORTERS[engine](tmp_path / "none", 2, Hints())


def test_another_topology_is_refused():
    with pytest.raises(MismatchError, match="2 ranks, but 2x2 has 4 devices"):
        SLOTS.to_placement(Topology.parse("2x2"))


def test_a_model_with_other_layers_is_refused(tmp_path):
    path = tmp_path / "map.json"
    path.write_bytes(EXPORTERS["vllm"](SLOTS, HINTS, ()).data)
    with pytest.raises(PlacementError, match="2 rows, and the model has 3 MoE layers"):
        MAP_IMPORTERS["vllm"](path, 2, Hints(layer_ids=(0, 1, 2)))
