"""Loads with counts of pairs: a surrogate that matches them, to plan on and not to measure on."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe import evaluate, plan
from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.engines.recordings.surrogate import draw_surrogate
from grace_moe.errors import MismatchError, TraceError, UsageError
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, activations, expert_loads, synthetic_trace

EXPERTS, K, TOKENS = 16, 4, 6_000


def counted(trace, flat=True, least=1.3):
    """The form of published profiles: loads, and the pairs that fire together more often than by chance."""
    layers = []
    for layer in range(trace.num_layers):
        chosen = activations(trace.topk_ids[:, layer], EXPERTS)
        together, heat = (chosen.T @ chosen).toarray(), expert_loads(trace)[layer]
        first = layer * EXPERTS if flat else 0
        lift = together * trace.num_tokens / np.outer(heat, heat)
        pairs = [(i, j) for i in range(EXPERTS) for j in range(i) if lift[i, j] > least]
        layers.append({"heat": heat.tolist(), "pairs": [[first + i, first + j, int(together[i, j]), float(lift[i, j])] for i, j in pairs]})
    return {"k": K, "n_decode_tokens": trace.num_tokens, "model": "m", "layers": layers}


@pytest.fixture(scope="module")
def real():
    return synthetic_trace(tokens=TOKENS, layers=2, experts=EXPERTS, top_k=K, affinity=0.8, skew=0.7, seed=1)


@pytest.fixture(scope="module")
def imported(real, tmp_path_factory):
    path = tmp_path_factory.mktemp("co") / "c.json"
    path.write_text(json.dumps(counted(real)))
    return TRACE_IMPORTERS["loads"]([path], Hints())


def test_the_surrogate_matches_loads_and_pairs(real, imported):
    trace = imported.trace
    assert (trace.surrogate, trace.layer_ids, trace.top_k, trace.model) == (True, (0, 1), K, "m")
    for layer in range(2):
        ours, theirs = (activations(t.topk_ids[:, layer], EXPERTS) for t in (trace, real))
        loads = np.array(theirs.sum(axis=0)) / TOKENS
        assert np.abs(np.array(ours.sum(axis=0)) / trace.num_tokens - loads).max() < 1 / 1000
        pairs, wanted = (np.triu((t.T @ t).toarray() / t.shape[0], 1) for t in (ours, theirs))
        assert np.abs(pairs - wanted).sum() < 0.1 * wanted.sum()  # those not given too
    assert "a surrogate: 4,096 tokens drawn" in imported.notes[0]
    assert "compare and evaluate refuse" in imported.notes[1]


def test_it_is_planned_on_nearly_as_the_tokens_would_be(real, imported):
    topology = Topology.parse("2x2")
    ours, theirs = (plan(trace, topology, "occult") for trace in (imported.trace, real))
    even = plan(real, topology, "linear")
    assert ours.provenance["trace"]["surrogate"] is True
    assert "surrogate" not in theirs.provenance["trace"]
    copies = [evaluate(p, real).cross_node_copies for p in (ours, theirs, even)]
    assert copies[1] < copies[2]
    assert copies[0] < copies[1] + 0.2 * (copies[2] - copies[1])


def test_it_is_not_measured_on(imported, tmp_path):
    imported.trace.save(tmp_path / "t.safetensors")
    again = RoutingTrace.load(tmp_path / "t.safetensors")
    assert again.surrogate
    assert again.split_requests()[1].surrogate
    with pytest.raises(MismatchError, match="a surrogate, drawn to match counts of pairs"):
        evaluate(plan(again, Topology.parse("1x2"), "linear"), again)


@given(st.data())
def test_every_token_chooses_distinct_experts_and_loads_are_as_counted(data):
    k = data.draw(st.integers(2, 4))
    loads = np.array(data.draw(st.lists(st.integers(1, 50), min_size=6, max_size=9)), dtype=float)
    loads = np.minimum(loads, loads.sum() / k)  # no expert is chosen twice by a token
    drawn = draw_surrogate(loads, np.zeros((0, 2), dtype=np.int64), np.zeros(0), k=k, tokens=64, seed=0)
    assert (np.sort(drawn.topk_ids, axis=1)[:, 1:] != np.sort(drawn.topk_ids, axis=1)[:, :-1]).all()
    found = np.bincount(drawn.topk_ids.ravel(), minlength=len(loads))
    share = np.minimum(loads * 64 * k / loads.sum(), 64)
    assert np.abs(found - share).max() <= 1 + 64 * k - share.sum()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 1}, r"k: 1 is not in 2\.\."),
        ({"layers": [{"heat": [1, 2], "pairs": [[0, 2, 1, 1]]}]}, "are not two of 2 experts"),
        ({"layers": [{"heat": [1, 2], "pairs": [[1, 1, 1, 1]]}]}, "are not two of 2 experts"),
        ({"layers": [{"heat": "x", "pairs": []}]}, "heat: not a list of numbers"),
        ({"layers": [{"heat": [1, -2], "pairs": []}]}, "not all are numbers of 0"),
        ({"layers": [{"heat": [1, 2], "pairs": [[1]]}]}, "not lists of expert, expert and count|not a list of numbers"),
        ({"layers": [{"heat": [1, 2], "pairs": []}, {"heat": [1, 2, 3], "pairs": []}]}, "layers differ"),
    ],
)
def test_other_files_are_refused(tmp_path, change, says):
    (tmp_path / "c.json").write_text(json.dumps({"k": 2, "layers": [{"heat": [1, 2], "pairs": []}]} | change))
    with pytest.raises(TraceError, match=says):
        TRACE_IMPORTERS["loads"]([tmp_path / "c.json"], Hints())


def test_k_may_come_from_the_model(tmp_path, real):
    value = counted(real, flat=False)
    del value["k"]
    (tmp_path / "c.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="how many experts a token chooses"):
        TRACE_IMPORTERS["loads"]([tmp_path / "c.json"], Hints())
    assert TRACE_IMPORTERS["loads"]([tmp_path / "c.json"], Hints(top_k=K)).trace.top_k == K
