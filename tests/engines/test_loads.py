"""Loads as engines and people have them: read with their own layers, whole or as floats, summed over what else there is."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from grace_moe import RoutingTrace, plan
from grace_moe.engines import EXPORTERS, TRACE_IMPORTERS, Hints, SlotMap, equalise
from grace_moe.engines.recordings.counts import profile_of_counts
from grace_moe.errors import TraceError, UsageError
from grace_moe.planning import METHODS
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, expert_loads, read_recording
from grace_moe.trace.counts import COUNT_ROWS

LOADS = [[4, 0, 1, 3], [2, 2, 5, 1]]


NOTHING = Hints()


def loads_of(engine, paths, hints=NOTHING):
    imported = TRACE_IMPORTERS[engine](paths if isinstance(paths, list) else [paths], hints)
    assert isinstance(imported.trace, LoadProfile)
    return imported.trace.layer_ids, expert_loads(imported.trace).tolist()


def test_an_archive_with_its_own_layer_numbers_is_read_and_exported_by_them(tmp_path):
    path = tmp_path / "l.npz"
    loads = np.arange(58 * 4).reshape(58, 4) + 1
    np.savez(path, expert_load=loads, layer_ids=np.arange(3, 61))
    assert loads_of("npz", path) == (tuple(range(3, 61)), loads.tolist())
    assert loads_of("npz", path, Hints(layer_ids=(5, 60), num_hidden_layers=61)) == ((5, 60), loads[[2, 57]].tolist())
    trace = TRACE_IMPORTERS["npz"]([path], Hints()).trace
    slots = SlotMap.of(equalise(plan(trace, Topology.parse("1x2"), "eplb", slots_per_device=3)).placement)
    rows = json.loads(EXPORTERS["sglang"](slots, Hints(num_hidden_layers=61), ()).data)["physical_to_logical_map"]
    assert len(rows) == 61
    assert (rows[3:] == slots.physical_to_logical).all()
    assert rows[:3] == [[0, 1, 2, 3, 0, 1]] * 3


def test_rows_without_numbers_are_the_models_layers_with_experts(tmp_path):
    """As many rows as the model has MoE layers are those; as many as it has layers in all are all of them."""
    path = tmp_path / "l.npz"
    np.savez(path, expert_load=np.array(LOADS))
    assert loads_of("npz", path, Hints(layer_ids=(3, 4), num_hidden_layers=5)) == ((3, 4), LOADS)
    assert loads_of("npz", path, Hints(layer_ids=(1,), num_hidden_layers=2)) == ((1,), LOADS[1:])
    assert loads_of("npz", path) == ((0, 1), LOADS)
    with pytest.raises(UsageError, match="give --layers"):
        loads_of("npz", path, Hints(num_hidden_layers=5))
    with pytest.raises(UsageError, match=r"decoder layers 0\.\.1, and the layers with experts are given as 3"):
        loads_of("npz", path, Hints(layer_ids=(3,)))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("beside", [{}, {"physical_to_logical_map": [[0, 1, 2, 3, 0]] * 2}])
@pytest.mark.parametrize("ending", ["json", "pt"])
def test_sglangs_logical_count(tmp_path, ending, beside, steps, floats):
    counts = np.array(LOADS) * (1.0 if floats else 1)
    counts = np.stack([counts, 2 * counts]) if steps else counts
    path = tmp_path / f"c.{ending}"
    if ending == "json":
        path.write_text(json.dumps({"logical_count": counts.tolist(), **beside}))
    else:
        torch.save({"logical_count": torch.from_numpy(counts), **{name: torch.tensor(item) for name, item in beside.items()}}, path)
    assert loads_of("sglang", path) == ((0, 1), (np.array(LOADS) * (3 if steps else 1)).tolist())


def test_csv_of_ranks_is_summed(tmp_path):
    (tmp_path / "0.csv").write_text("layer_id,expert_id,count\n3,0,4\n3,2,1\n4,1,2\n4,2,5\n")
    (tmp_path / "1.csv").write_text("rank,expert_id,layer_id,count\n1,3,3,3\n1,0,4,2\n1,3,4,1\n")
    (tmp_path / "2.csv").write_text("3,0,1\n3,0,1\n")  # no header
    paths = [tmp_path / f"{rank}.csv" for rank in range(3)]
    assert loads_of("loads", paths) == ((3, 4), [[6, 0, 1, 3], LOADS[1]])
    assert "4 experts, as the highest number says" in TRACE_IMPORTERS["loads"](paths, Hints()).notes[-1]
    joined = tmp_path / "j.csv"
    joined.write_text((tmp_path / "0.csv").read_text() * 2)
    assert loads_of("loads", joined, Hints(num_experts=5)) == ((3, 4), [[8, 0, 2, 0, 0], [0, 4, 10, 0, 0]])


@pytest.mark.parametrize(
    "lines",
    [
        [{"iteration": i, "layer_number": layer + 1, "tokens_per_expert": row} for i in (1, 2) for layer, row in enumerate(LOADS)],
        [{"iteration": i, "layer": layer, "tokens_per_expert": row} for i in (1, 2) for layer, row in enumerate(LOADS)],
        [{"iteration": i, "tokens_per_expert": LOADS} for i in (1, 2)],
        [{"iteration": i, "tokens_per_expert": {f"layer_{layer}": row for layer, row in enumerate(LOADS)}} for i in (1, 2)],
        [{"iteration": i, **{f"layer_{layer}": row for layer, row in enumerate(LOADS)}} for i in (1, 2)],
    ],
)
def test_json_lines_of_tokens_per_expert(tmp_path, lines):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert loads_of("loads", path) == ((0, 1), (2 * np.array(LOADS)).tolist())


def test_lists_alone(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps(LOADS))
    assert loads_of("loads", tmp_path / "l.json") == ((0, 1), LOADS)
    torch.save({"logical_count": LOADS}, tmp_path / "l.pt")
    assert loads_of("sglang", tmp_path / "l.pt") == ((0, 1), LOADS)


def test_arrays_of_loads(tmp_path):
    np.save(tmp_path / "l.npy", np.array(LOADS, dtype=np.float32))
    assert loads_of("loads", tmp_path / "l.npy") == ((0, 1), LOADS)
    save_file({"expert_load": np.array([LOADS, LOADS])}, tmp_path / "l.safetensors", metadata={"layer_ids": "[7, 9]"})
    assert loads_of("loads", tmp_path / "l.safetensors") == ((7, 9), (2 * np.array(LOADS)).tolist())


def test_mean_loads_keep_their_shares():
    trace = profile_of_counts(np.array([[0.5, 0.25, 0.25, 0.0]]), Hints(), "l").trace
    assert expert_loads(trace).tolist() == [[COUNT_ROWS // 2, COUNT_ROWS // 4, COUNT_ROWS // 4, 0]]


def test_counts_far_apart_lose_no_expert():
    imported = profile_of_counts(np.array([[10**9, 13, 0, 1], [13, 1, 0, 0]]), Hints(), "l")
    loads = expert_loads(imported.trace)
    assert loads.tolist() == [[COUNT_ROWS - 2, 1, 0, 1], [13, 1, 0, 0]]
    assert "loads are scaled to 65,536 rows" in imported.notes[0]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40).filter(any))
def test_any_mean_loads_come_out_in_whole_rows(loads):
    row = expert_loads(profile_of_counts(np.array([[*loads, 0.5]]), Hints(), "l").trace)[0]
    share = np.array([*loads, 0.5])
    assert ((row > 0) == (share > 0)).all()
    assert np.abs(row / row.sum() - share / share.sum()).max() <= len(share) / row.sum()


def test_layers_that_counted_nothing_are_left_out_and_named():
    counts = np.array([LOADS[0], [0] * 4, LOADS[1]])
    imported = profile_of_counts(counts, Hints(layer_ids=(0, 1, 2)), "l")
    assert imported.trace.layer_ids == (0, 2)
    assert imported.notes[0] == "1 layer with experts recorded nothing and is left out: 1"
    assert profile_of_counts(counts, Hints(), "l").notes[0] == "layers 1 never chose: taken as dense (--layers says otherwise)"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "layer_id,count\n1,2\n", "layer_id,count has no expert"),
        ("l.csv", "layer_id,expert_id,count\n1,2.5,1\n", "no number, or out of range"),
        ("l.csv", "layer_id,expert_id,count\n1,2,-1\n", "not all are numbers|negative"),
        ("l.csv", "layer_id,expert_id,count\n1,2\n", "2 columns, and the header has 3"),
        ("l.csv", "1,2\n", "header: missing"),
        ("l.csv", "layer_id,expert_id,count\n1,2,3\nlayer,expert,count\n", "after layer_id"),
        ("l.json", "[]", "loads: none"),
        ("l.json", '{"x": 1}', "loads: none"),
        ("l.json", '{"counts": [[1, 2], [3]]}', "lists of different lengths"),
        ("l.json", '{"counts": ["a"]}', "not lists of numbers"),
        ("l.json", '{"counts": [1, 2]}', "missing, and the counts are of one layer"),
        ("l.json", '{"counts": [[1, 2]], "layer_ids": [1, 2]}', "layer_ids: 2 numbers for 1 layers"),
        ("l.json", '{"counts": [[1e300, 2]]}', "not all are numbers of 0 to"),
        ("l.json", '{"counts": [[0, 0]]}', "all counts are 0"),
        ("l.json", '{"tokens_per_expert": {"x": [1]}}', "not a list for each number of a layer"),
        ("l.jsonl", '{"layer_number": 0, "counts": [1]}', "layer_number: 0 is not a layer"),
        ("l.txt", "x", "say by its name what it is"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=says) as error:
        TRACE_IMPORTERS["loads"]([tmp_path / name], Hints())
    assert str(tmp_path) in str(error.value)


def test_counts_have_no_tokens_to_skip():
    with pytest.raises(UsageError, match="--skip-tokens"):
        profile_of_counts(np.array(LOADS), Hints(skip_tokens=1), "l")


@given(st.lists(st.lists(st.integers(0, 10**9), min_size=4, max_size=4), min_size=1, max_size=3))
def test_counts_keep_their_shares(rows):
    counts = np.array(rows, dtype=np.int64)
    assume(counts.sum() > 0)
    trace = profile_of_counts(counts, Hints(), "counts").trace
    loads = expert_loads(trace)
    for row, load in zip(counts[list(trace.layer_ids)], loads, strict=True):
        assert ((load > 0) == (row > 0)).all()
        assert load.sum() <= COUNT_ROWS
        if row.sum() <= COUNT_ROWS:
            assert load.tolist() == row.tolist()
        elif row.sum():
            assert np.abs(load / load.sum() - row / row.sum()).max() <= 4 / COUNT_ROWS


def test_counts_are_planned_by_load_and_not_measured(tmp_path):
    trace = profile_of_counts(np.array([[50, 1, 1, 1, 1, 1, 1, 1]]), Hints(), "c", layer_ids=(2,)).trace
    trace.save(tmp_path / "c.safetensors")
    again = read_recording(tmp_path / "c.safetensors")
    assert (type(again), again.loads.tolist(), again.layer_ids) == (LoadProfile, trace.loads.tolist(), (2,))
    placement = plan(again, Topology.parse("2x2"), slots_per_device=3)
    assert "placed by load" in placement.provenance["notes"][-1]
    assert len(placement.layers[0].devices_of_expert[0]) > 1
    assert plan(again, Topology.parse("2x2"), "eplb", slots_per_device=3).layers == placement.layers
    for method in set(METHODS) - {"grace", "linear", "round_robin", "eplb", "biased"}:
        with pytest.raises(UsageError, match="counts only, and method"):
            plan(again, Topology.parse("2x2"), method)
    with pytest.raises(TraceError, match="counts_only: it tells how often each expert fires, not what a token costs; record tokens"):
        RoutingTrace.load(tmp_path / "c.safetensors")
