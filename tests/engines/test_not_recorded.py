"""What was not recorded is no data: rows, tails, layers and phases are left out, and that is said with numbers."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.engines.recordings.tokens import UNKNOWN, Tokens, trace_of_tokens
from grace_moe.errors import TraceError, UsageError
from tests.engines.samples import chosen
from tests.engines.test_imports import EXPERTS, MODEL, base64_of, npy, routing, sglang_dump

RNG = np.random.default_rng(5)


def tokens_of(ids, **fields):
    return Tokens(topk_ids=np.asarray(ids), num_experts=8, source="dump", **fields)


def test_rows_that_no_layer_recorded_and_their_requests():
    ids = np.concatenate([chosen(RNG, 10, 3, 8, 2), np.full((5, 3, 2), -1)])
    requests = np.repeat([4, 9, 9], 5)
    imported = trace_of_tokens(tokens_of(ids, requests=requests), Hints())
    assert (imported.trace.topk_ids == ids[:10]).all()
    assert imported.trace.requests.tolist() == [0] * 5 + [1] * 5
    assert imported.notes == ("5 of 15 tokens are left out: 5 that no layer recorded a choice of",)
    gone = trace_of_tokens(tokens_of(ids, requests=np.repeat([0, 1, 2], 5)), Hints())
    assert gone.notes[0].endswith("; 1 request with them")
    with pytest.raises(TraceError, match="none has"):
        trace_of_tokens(tokens_of(np.full((5, 3, 2), -1)), Hints())


def test_rows_filled_with_zeros_where_tokens_choose_several():
    ids = np.concatenate([chosen(RNG, 10, 3, 8, 2), np.zeros((6, 3, 2), dtype=int)])
    imported = trace_of_tokens(tokens_of(ids), Hints())
    assert imported.trace.num_tokens == 10
    assert imported.notes == ("6 of 16 tokens are left out: 6 that no layer recorded a choice of",)


@pytest.mark.parametrize("requests", [None, np.repeat([0, 1], [8, 8])])
def test_rows_filled_with_zeros_where_tokens_choose_one(requests):
    """By hand: expert 0 in all three layers of the last tokens of a request, which chance would not do."""
    ids = RNG.integers(1, 8, (16, 3, 1))
    ids[3] = 0  # in the middle: a choice
    ids[13:] = 0
    imported = trace_of_tokens(tokens_of(ids, requests=requests), Hints())
    assert (imported.trace.topk_ids == ids[:13]).all()
    assert imported.notes == ("3 of 16 tokens are left out: 3 of expert 0 alone, at the ends of requests, as unused rows are filled",)


def test_a_last_token_that_may_have_chosen_expert_0_stays():
    ids = np.array([[[3]], [[5]], [[0]]])
    assert trace_of_tokens(tokens_of(ids), Hints(layer_ids=(0,))).trace.num_tokens == 3


def test_layers_that_recorded_nothing():
    ids = chosen(RNG, 6, 4, 8, 2)
    ids[:, 1], ids[:, 2] = -1, 0
    imported = trace_of_tokens(tokens_of(ids), Hints(layer_ids=(1, 2, 3), num_hidden_layers=4))
    assert imported.trace.layer_ids == (3,)
    assert imported.notes[0] == "2 layers with experts recorded nothing and are left out: 1, 2"


def test_phases_that_most_tokens_have_outlast_those_that_have_none():
    ids = chosen(RNG, 5, 2, 8, 2)
    phase = np.array([0, 0, UNKNOWN, 1, 1], dtype=np.uint8)
    imported = trace_of_tokens(tokens_of(ids, phase=phase), Hints())
    assert imported.trace.phase.tolist() == [0, 0, 1, 1]
    assert imported.notes[0].startswith("1 of 5 tokens are left out: whether they are prefill or decode was not recorded")
    few = trace_of_tokens(tokens_of(ids, phase=np.array([UNKNOWN] * 4 + [1], dtype=np.uint8)), Hints())
    assert few.trace.phase is None
    assert few.trace.num_tokens == 5
    assert few.notes[0] == "phases are left out: 4 of 5 tokens have none"


def test_one_response_without_a_prompt_does_not_take_the_phases_of_all(tmp_path):
    whole = [{"usage": {"prompt_tokens": 2}, "choices": [{"routed_experts": base64_of(npy(routing(5, seed=s)))}]} for s in range(3)]
    (tmp_path / "r.json").write_text(json.dumps([*whole, {"choices": whole[0]["choices"]}]))
    imported = TRACE_IMPORTERS["vllm"]([tmp_path / "r.json"], MODEL)
    assert imported.trace.phase.tolist() == [0, 0, 1, 1, 1] * 3
    assert any("5 of 20 tokens are left out" in note for note in imported.notes)


def test_one_mixed_pass_does_not_take_the_phases_of_all(tmp_path):
    paths = [
        sglang_dump(tmp_path, "e.pt"),
        sglang_dump(tmp_path, "d.pt", ids=routing(4, seed=1), mode=2, forward_pass_id=8),
        sglang_dump(tmp_path, "m.pt", ids=routing(4, seed=2), mode=3, forward_pass_id=9, extend_seq_lens=[2, 1, 1], positions=[0, 1, 7, 0]),
    ]
    imported = TRACE_IMPORTERS["sglang"](paths, Hints())
    assert imported.trace.phase.tolist() == [0] * 5 + [1] * 4 + [0, 0, 1, 0]
    assert any("1 mixed pass of 4 tokens" in note for note in imported.notes)
    blind = sglang_dump(tmp_path, "m.pt", ids=routing(4, seed=2), mode=3, forward_pass_id=9, extend_seq_lens=[2, 1, 1], positions=None)
    imported = TRACE_IMPORTERS["sglang"]([*paths[:2], blind], Hints())
    assert imported.trace.phase.tolist() == [0] * 5 + [1] * 4
    assert any("4 of 13 tokens are left out" in note for note in imported.notes)


def test_draft_passes_of_sglang(tmp_path):
    dump = sglang_dump(tmp_path)
    value = torch.load(dump, weights_only=True)
    draft = dict(value["records"][0], topk_ids_of_layer=torch.full((3, 4, 8), -1, dtype=torch.int32), forward_pass_id=8)
    value["records"].append(draft | {"extend_seq_lens": [4], "positions": [0, 1, 2, 3], "input_ids": [0] * 4})
    torch.save(value, dump)
    imported = TRACE_IMPORTERS["sglang"]([dump], Hints())
    assert imported.trace.num_tokens == 5
    assert set(imported.trace.requests.tolist()) == {0, 1}
    assert any(note == "4 of 9 tokens are left out: 4 that no layer recorded a choice of; 1 request with them" for note in imported.notes)


def test_an_archive_leaves_out_the_same(tmp_path):
    ids = np.concatenate([chosen(RNG, 6, 2, EXPERTS, 2), np.full((2, 2, 2), -1)])
    phase, requests = np.array([0] * 4 + [1] * 4), np.array([3, 3, 3, 3, 3, 3, 5, 5])
    np.savez(tmp_path / "a.npz", topk_ids=ids, num_experts=EXPERTS, request_ids=requests, phase=phase, layer_ids=[4, 6])
    imported = TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints())
    assert (imported.trace.topk_ids == ids[:6]).all()
    assert imported.trace.phase.tolist() == phase[:6].tolist()
    assert imported.notes == ("2 of 8 tokens are left out: 2 that no layer recorded a choice of; 1 request with them",)
    assert TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints(layer_ids=(4, 5, 6))).trace.layer_ids == (4, 6)
    with pytest.raises(UsageError, match="it has layers 4, 6"):
        TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints(layer_ids=(4, 5)))


def test_request_ids_of_64_bits_stay_apart(tmp_path):
    np.savez(tmp_path / "a.npz", topk_ids=chosen(RNG, 2, 1, 8, 2), num_experts=8, request_ids=np.array([0, 2**32]))
    assert TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints()).trace.requests.tolist() == [0, 1]


def test_the_first_tokens_are_skipped():
    ids = chosen(RNG, 6, 2, 8, 2)
    requests = np.array([0, 0, 0, 1, 1, 1])
    trace = trace_of_tokens(tokens_of(ids, requests=requests), Hints(skip_tokens=4)).trace
    assert (trace.topk_ids == ids[4:]).all()
    assert trace.requests.tolist() == [0, 0]
    with pytest.raises(UsageError, match="--skip-tokens: 6 leave nothing of the 6 tokens"):
        trace_of_tokens(tokens_of(ids), Hints(skip_tokens=6))


@given(st.data())
def test_recorded_tokens_come_out_as_they_went_in(data):
    """Whatever rows are unrecorded, the others keep their choices, requests and phases."""
    number = data.draw(st.integers(1, 12))
    ids = chosen(np.random.default_rng(data.draw(st.integers(0, 99))), number, 2, 8, 3)
    recorded = np.array(data.draw(st.lists(st.booleans(), min_size=number, max_size=number).filter(any)))
    requests = np.array(data.draw(st.lists(st.integers(0, 3), min_size=number, max_size=number)))
    trace = trace_of_tokens(tokens_of(np.where(recorded[:, None, None], ids, -1), requests=requests), Hints(layer_ids=(0, 1))).trace
    assert (trace.topk_ids == ids[recorded]).all()
    same = requests[recorded][:, None] == requests[recorded]
    assert ((trace.requests[:, None] == trace.requests) == same).all()
