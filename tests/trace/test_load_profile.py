"""Loads without tokens: their own type, one file format with traces, and no way to be taken for tokens."""

from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe import RoutingTrace
from grace_moe.errors import TraceError
from grace_moe.trace import LoadProfile, expert_loads, mixed_recordings, read_recording, skew, synthetic_trace
from grace_moe.trace.store import write_fields


def profile(*rows, **names):
    return LoadProfile(loads=np.array(rows), layer_ids=tuple(range(3, 3 + len(rows))), **names)


@given(
    arrays.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.integers(0, 3000)).filter(
        lambda a: a.any(axis=1).all()
    )
)
def test_a_file_gives_back_what_was_saved(tmp_path_factory, loads):
    path = tmp_path_factory.mktemp("loads") / "l.safetensors"
    saved = LoadProfile(loads=loads, layer_ids=tuple(range(len(loads))), model="m", dataset="d")
    saved.save(path)
    again = read_recording(path)
    assert isinstance(again, LoadProfile)
    assert (again.loads == loads).all()
    assert (again.layer_ids, again.model, again.dataset, again.digest) == (saved.layer_ids, "m", "d", saved.digest)


def test_tokens_are_read_as_tokens(tmp_path):
    trace = synthetic_trace(tokens=20, experts=8, top_k=2)
    trace.save(tmp_path / "t")
    again = read_recording(tmp_path / "t")
    assert isinstance(again, RoutingTrace)
    assert again.digest == trace.digest


def test_what_needs_tokens_refuses_counts(tmp_path):
    profile([4, 1]).save(tmp_path / "l")
    with pytest.raises(TraceError, match=r"l: counts_only: it tells how often .* record tokens, or import"):
        RoutingTrace.load(tmp_path / "l")


def test_statistics():
    loads = profile([6, 2, 0, 0], [1, 1, 1, 1])
    assert (loads.num_layers, loads.num_experts) == (2, 4)
    assert expert_loads(loads).tolist() == [[6, 2, 0, 0], [1, 1, 1, 1]]
    assert skew(loads).tolist() == [3.0, 1.0]


def test_mixed_profiles_weigh_the_same():
    """300 counts of expert 0 weigh as much as 3 of expert 1."""
    mixed = mixed_recordings([profile([300, 0], dataset="a"), profile([0, 3], dataset="b")])
    assert (mixed.loads.tolist(), mixed.dataset) == ([[300, 300]], "a + b")
    one = profile([5, 1])
    assert mixed_recordings([one]) is one


def test_what_cannot_be_mixed():
    tokens = synthetic_trace(tokens=20, layers=1, experts=2, top_k=1)
    with pytest.raises(TraceError, match="join tokens with tokens, or counts with counts"):
        mixed_recordings([tokens, profile([1, 2])])
    with pytest.raises(TraceError, match="join loads of one model"):
        mixed_recordings([profile([1, 2]), profile([1, 2, 3])])
    with pytest.raises(TraceError, match="model: 'b', but loads has 'a'; join loads of one model"):
        mixed_recordings([profile([1, 2], model="a"), profile([1, 2], model="b")])
    assert mixed_recordings([profile([1, 2]), profile([1, 2], model="b")]).model == "b"


@pytest.mark.parametrize(
    ("loads", "layer_ids", "says"),
    [
        (np.array([1, 2]), (0,), r"\(2,\) is not \[layers, experts\]"),
        (np.array([[1.0, 2.0]]), (0,), "float64"),
        (np.array([[-1, 2]]), (0,), "counts"),
        (np.array([[1, 2], [0, 0]]), (0, 4), "none in layer 4"),
        (np.array([[1, 2]]), (0, 1), "2 numbers for 1 layers"),
        (np.array([[1, 2]]), (-1,), "not in 0"),
    ],
)
def test_faults_are_named(loads, layer_ids, says):
    with pytest.raises(TraceError, match=says):
        LoadProfile(loads=loads, layer_ids=layer_ids)


def test_more_than_rows_hold_are_scaled_in_the_file(tmp_path: Path):
    profile([3_000_000, 1_000_000, 7]).save(tmp_path / "l")
    loads = read_recording(tmp_path / "l").loads[0]
    assert loads.sum() <= 65_536
    assert loads[2] >= 1
    assert loads[0] / loads[1] == pytest.approx(3, rel=1e-3)


def test_counts_with_several_choices_a_row_are_refused(tmp_path):
    ids = np.array([[[0, 1]]], dtype=np.int16)
    write_fields({"topk_ids": ids, "num_experts": 2, "layer_ids": (0,), "model": "", "dataset": "", "counts_only": True}, tmp_path / "c")
    with pytest.raises(TraceError, match="counts_only: k = 2"):
        read_recording(tmp_path / "c")
