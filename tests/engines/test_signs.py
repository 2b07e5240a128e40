"""Recordings that are not what they seem: they are taken, and a note says so."""

import numpy as np
import pytest

from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.engines.recordings.same_passes import repeated_passes
from grace_moe.engines.recordings.signs import even_counts, signs
from grace_moe.trace import RoutingTrace, synthetic_trace
from tests.engines.samples import chosen
from tests.engines.test_imports import routing, sglang_dump

RNG = np.random.default_rng(3)


def trace_of(ids, **fields):
    return RoutingTrace(topk_ids=ids.astype(np.int16), num_experts=8, layer_ids=tuple(range(ids.shape[1])), **fields)


def partitions(layers=2, blocks=6):
    """Every 4 tokens' choices of 2 are an order of all 8 experts."""
    return np.stack([np.concatenate([RNG.permutation(8).reshape(4, 2) for _ in range(blocks)]) for _ in range(layers)], axis=1)


def test_a_warm_up_is_named_and_can_be_skipped():
    ids = chosen(RNG, 30, 2, 8, 2)
    ids[:12] = ids[0]
    assert "the first 12 tokens" in signs(trace_of(ids))[0]
    assert "--skip-tokens 12 leaves them out" in signs(trace_of(ids))[0]
    assert signs(trace_of(ids[12:])) == ()
    assert signs(trace_of(ids[10:])) == ()  # two alike may be chance


def test_orders_of_all_experts_are_recognised():
    ids = partitions()
    assert "every 4 tokens name each of the 8 experts exactly once" in signs(trace_of(ids))[0]
    ids[5, 1] = ids[4, 1]
    assert signs(trace_of(ids)) == ()


def test_orders_are_recognised_where_the_last_layer_has_the_last_token_alone():
    ids = partitions()
    ids[:-1, 1] = -1
    request = np.zeros(len(ids), dtype=np.int32)
    assert signs(trace_of(ids, request_ids=request)) == ()  # six blocks may be chance
    ids = partitions(blocks=9)
    ids[:-1, 1] = -1
    assert "exactly once" in signs(trace_of(ids, request_ids=np.zeros(len(ids), dtype=np.int32)))[0]


@pytest.mark.parametrize("seed", range(3))
def test_routing_as_it_should_be_has_no_signs(seed):
    assert signs(synthetic_trace(tokens=400, layers=2, experts=16, top_k=4, affinity=0.0, skew=0.0, seed=seed)) == ()


def test_counts_more_even_than_any_router():
    assert "exactly 1.0x" in even_counts(np.full((2, 8), 100.0))[0]
    assert even_counts(RNG.poisson(100, (2, 8)).astype(float)) == ()
    assert even_counts(np.full((2, 8), 1.0)) == ()


def csv_of(path, batches, header="layer,expert\n"):
    rows = "".join(f"{layer},{expert}\n" for batch in batches for layer, experts in enumerate(batch) for expert in experts)
    path.write_text(header + rows)
    return path


@pytest.mark.parametrize("hints", [Hints(num_experts=8, top_k=2), Hints(num_experts=8)])
def test_llama_cpps_strided_view(tmp_path, hints):
    order = [[expert for _ in range(4) for expert in RNG.permutation(8)] for _ in range(3)]
    notes = TRACE_IMPORTERS["llama.cpp"]([csv_of(tmp_path / "s.csv", [order])], hints).notes
    assert any("exactly once, in all layers (a load of exactly 1.0x)" in note for note in notes)


def test_joined_csv_has_the_batches_of_each(tmp_path):
    """A header between them starts a batch, even where layers go on."""
    first = csv_of(tmp_path / "a.csv", [[[1, 2, 3, 4], [5, 6]]])
    second = csv_of(tmp_path / "b.csv", [[[0, 7]]])
    second.write_text(second.read_text().replace("0,0", "2,0").replace("0,7", "2,7"))
    joined = tmp_path / "j.csv"
    joined.write_text(first.read_text() + second.read_text())
    trace = TRACE_IMPORTERS["llama.cpp"]([joined], Hints(num_experts=8, top_k=2)).trace
    assert trace.layer_ids == (0, 1, 2)
    assert trace.topk_ids.tolist() == [[[1, 2], [-1, -1], [-1, -1]], [[3, 4], [5, 6], [-1, -1]], [[-1, -1], [-1, -1], [0, 7]]]
    assert trace.requests.tolist() == [0, 0, 1]
    apart = TRACE_IMPORTERS["llama.cpp"]([first, second], Hints(num_experts=8, top_k=2)).trace
    assert apart.digest == trace.digest


# Ranks that recorded alike


def test_ranks_repeat_each_other_or_only_share_a_prompt():
    tensor = repeated_passes([{1: "a", 2: "b"}, {1: "a", 2: "b"}, {1: "a"}])
    assert tensor == [set(), {1, 2}, {1}]
    data = repeated_passes([{1: "a", 2: "b"}, {1: "a", 2: "c"}])
    assert data == [set(), set()]
    both = repeated_passes([{1: "a", 2: "b"}, {1: "a", 2: "b"}, {1: "a", 2: "c"}, {1: "a", 2: "c"}])
    assert both == [set(), {1, 2}, set(), {1, 2}]


def test_a_request_that_two_data_parallel_ranks_share_by_chance_is_two(tmp_path):
    def rank(number, seed):
        same = sglang_dump(tmp_path, f"{number}.pt", rank=number)
        import torch

        value = torch.load(same, weights_only=True)
        other = torch.load(sglang_dump(tmp_path, "o.pt", ids=routing(5, seed=seed), forward_pass_id=8), weights_only=True)
        torch.save({**value, "records": value["records"] + other["records"]}, same)
        return same

    trace = TRACE_IMPORTERS["sglang"]([rank(0, 1), rank(1, 2)], Hints()).trace
    assert trace.num_tokens == 20
    assert len(set(trace.requests.tolist())) == 8
