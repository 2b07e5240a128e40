"""Maps as engines and their users have them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from grace_moe.engines import EXPORTERS, MAP_IMPORTERS, Hints, SlotMap, equalise
from grace_moe.errors import PlacementError, UsageError
from grace_moe.topology import Topology
from tests.engines.samples import placements, sets

NOTHING = Hints()


def read(tmp_path, engine, value, ranks=2, hints=NOTHING):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(value))
    return MAP_IMPORTERS[engine](path, ranks, hints)


def test_an_expert_twice_on_a_rank_is_one_replica_of_twice_the_weight():
    """By hand: expert 0 has three slots, two of them on rank 0."""
    slots = SlotMap(physical_to_logical=np.array([[0, 0, 1, 0, 2, 3]]), layer_ids=(4,), num_experts=4, num_ranks=2)
    placement = slots.to_placement(Topology.parse("1x2"))
    assert placement.layers[0].devices_of_expert == ((0, 1), (0,), (1,), (1,))
    assert placement.layers[0].replica_weights == ((2 / 3, 1 / 3), (1.0,), (1.0,), (1.0,))
    assert placement.provenance["notes"][-1].startswith("1 slot hold")
    equal = equalise(placement)
    assert (equal.placement.slots_per_device() == 3).all()


@settings(max_examples=30)
@given(placements(most_experts=6))
def test_any_map_with_experts_twice_keeps_who_holds_what(placement):
    slots = SlotMap.of(equalise(placement).placement)
    doubled = np.concatenate([slots.physical_to_logical.reshape(len(slots.layer_ids), slots.num_ranks, -1)] * 2, axis=2)
    again = SlotMap(
        physical_to_logical=doubled.reshape(len(slots.layer_ids), -1),
        layer_ids=slots.layer_ids,
        num_experts=slots.num_experts,
        num_ranks=slots.num_ranks,
    )
    back = again.to_placement(placement.topology)
    assert sets(back) == sets(slots.to_placement(placement.topology))
    for layer, other in zip(back.layers, slots.to_placement(placement.topology).layers, strict=True):
        assert layer.replica_weights == other.replica_weights


def test_vllms_proposals_flat_and_nested(tmp_path):
    hints = Hints(layer_ids=(1, 3), num_hidden_layers=4)
    one = [0, 1, 2, 0]
    for value in (one, [one, one], {"physical_to_logical_map": one}, {"0": one, "1": one}, {"1": one, "3": one}):
        slots = read(tmp_path, "vllm", value, hints=hints)
        assert slots.layer_ids == (1, 3)
        assert slots.physical_to_logical.tolist() == [one, one]
    assert read(tmp_path, "vllm", {"1": one, "3": one}).layer_ids == (1, 3)
    with pytest.raises(PlacementError, match="one list for all layers, and it doesn't say how many there are; give --model or --layers"):
        read(tmp_path, "vllm", one)
    with pytest.raises(PlacementError, match=r"\[1, 2\] are not the model's \[1, 3\]"):
        read(tmp_path, "vllm", {"1": one, "2": one}, hints=hints)


def test_ranks_by_expert(tmp_path):
    """By hand: rank 1 has experts 0 and 3."""
    hints = Hints(layer_ids=(0,))
    assert read(tmp_path, "vllm", {"expert_to_ep_rank": [1, 0, 0, 1]}, hints=hints).physical_to_logical.tolist() == [[1, 2, 0, 3]]
    nested = read(tmp_path, "vllm", {"expert_to_ep_rank": [[1, 0, 0, 1], [0, 0, 1, 1]]})
    assert nested.physical_to_logical.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    with pytest.raises(PlacementError, match="ranks hold 1 to 3 experts"):
        read(tmp_path, "vllm", {"expert_to_ep_rank": [1, 0, 0, 0]}, hints=hints)
    with pytest.raises(PlacementError, match=r"of ranks 0\.\.2"):
        read(tmp_path, "vllm", {"expert_to_ep_rank": [1, 0, 2]}, hints=hints)


def ascend(layers, first_layer=None, first_device=None, **more):
    def numbered(items, name, first):
        return [item if first is None else {name: first + i, **item} for i, item in enumerate(items)]

    rows = [{"device_list": numbered([{"device_expert": held} for held in row], "device_id", first_device)} for row in layers]
    return {"layer_list": numbered(rows, "layer_id", first_layer), **more}


ROWS = [[[0, 1], [2, 0]], [[2, 1], [0, 2]]]


@pytest.mark.parametrize("first_device", [None, 0, 1])
@pytest.mark.parametrize("first_layer", [None, 0, 1])
def test_ascend_maps_without_numbers_or_from_one(tmp_path, first_layer, first_device):
    slots = read(tmp_path, "vllm-ascend", ascend(ROWS, first_layer, first_device), hints=Hints(layer_ids=(3, 4)))
    assert slots.layer_ids == (3, 4)
    assert slots.physical_to_logical.tolist() == [[0, 1, 2, 0], [2, 1, 0, 2]]


def test_ascend_maps_in_another_order_and_with_the_models_numbers(tmp_path):
    value = ascend(ROWS, 3, 0)
    value["layer_list"].reverse()
    assert read(tmp_path, "vllm-ascend", value).layer_ids == (3, 4)
    assert read(tmp_path, "vllm-ascend", value).physical_to_logical.tolist() == [[0, 1, 2, 0], [2, 1, 0, 2]]
    with pytest.raises(PlacementError, match=r"\[3, 4\] are not the model's \[5, 6\]"):
        read(tmp_path, "vllm-ascend", value, hints=Hints(layer_ids=(5, 6)))
    value["layer_list"][0].pop("layer_id")
    with pytest.raises(PlacementError, match="number all, or none"):
        read(tmp_path, "vllm-ascend", value)
    gap = ascend(ROWS, 0, 0)
    gap["layer_list"][1]["layer_id"] = 2
    with pytest.raises(PlacementError, match="leave one out"):
        read(tmp_path, "vllm-ascend", gap)


def test_sglangs_location_as_torch_saves_it_and_with_loads_beside(tmp_path):
    rows = [[0, 1, 2, 0], [2, 1, 0, 2]]
    torch.save({"physical_to_logical_map": torch.tensor(rows), "logical_count": torch.ones(2, 3)}, tmp_path / "l.pt")
    assert MAP_IMPORTERS["sglang"](tmp_path / "l.pt", 2, Hints()).physical_to_logical.tolist() == rows
    assert read(tmp_path, "sglang", {"physical_to_logical_map": rows, "logical_count": [[1] * 3] * 2}).num_experts == 3
    with pytest.raises(PlacementError, match="its loads can be imported as a trace"):
        read(tmp_path, "sglang", {"logical_count": [[1, 2]]})
    (tmp_path / "b.pt").write_bytes(b"x")
    with pytest.raises(PlacementError, match="not a location"):
        MAP_IMPORTERS["sglang"](tmp_path / "b.pt", 2, Hints())


def test_a_plan_in_natural_order_is_exported_and_comes_back(tmp_path):
    slots = SlotMap(physical_to_logical=np.array([[0, 1, 2, 3]] * 2), layer_ids=(0, 1), num_experts=4, num_ranks=2)
    (tmp_path / "l.json").write_bytes(EXPORTERS["sglang"](slots, Hints(), ()).data)
    assert MAP_IMPORTERS["sglang"](tmp_path / "l.json", 2, Hints()).layer_ids == (0, 1)


def test_a_model_that_does_not_tell_asks_for_its_layers(tmp_path):
    """Two MoE layers of a model of three, and its config follows no rule that is known."""
    with pytest.raises(
        UsageError, match=r"2 layers of the model's 3, and neither it nor the model's config tells which have experts; give --layers"
    ):
        read(tmp_path, "vllm", [[0, 1]] * 2, hints=Hints(num_hidden_layers=3, num_experts=2))
    assert read(tmp_path, "vllm", [[0, 1]] * 3, hints=Hints(num_hidden_layers=3)).layer_ids == (0, 1, 2)
