"""Recordings of engines as traces: what went in comes out, and what is not known is said."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.errors import UsageError
from grace_moe.trace import LoadProfile, RecordingSizes, expert_loads
from tests.engines.samples import chosen

EXPERTS, K = 6, 2
MODEL = Hints(num_experts=EXPERTS, top_k=K, num_hidden_layers=3, model="tiny", dataset="text")


def routing(tokens=5, seed=0, dense=(0,)):
    """`[tokens, 3 layers, k]` as vLLM gives it: dense layers are filled with expert 0."""
    ids = chosen(np.random.default_rng(seed), tokens, 3, EXPERTS, K)
    ids[:, list(dense)] = 0
    return ids


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


# vLLM


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_vllm_arrays_are_a_request_each(tmp_path, dtype):
    arrays = [routing(5), routing(3, seed=1)]
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array.astype(dtype))
    imported = TRACE_IMPORTERS["vllm"](paths, MODEL)
    assert imported.trace.layer_ids == (1, 2)
    assert (imported.trace.topk_ids == np.concatenate(arrays)[:, 1:]).all()
    assert imported.trace.requests.tolist() == [0] * 5 + [1] * 3
    assert imported.trace.phase is None
    assert imported.trace.model == "tiny"
    assert imported.notes == ("layers 0 never chose: taken as dense (--layers says otherwise)",)


def test_vllm_responses_know_prompts_and_may_come_a_line_each(tmp_path):
    answers = [
        {
            "usage": {"prompt_tokens": 3},
            "choices": [{"routed_experts": base64_of(npy(routing(5).astype(np.uint8)))}, {"text": "no routing"}],
        },
        {"choices": [{"routed_experts": base64_of(npy(routing(2, seed=1).astype(np.uint8)))}], "usage": {"prompt_tokens": 2}},
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, answers)) + "\n\n")
    trace = TRACE_IMPORTERS["vllm"]([path], MODEL).trace
    assert trace.phase.tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert trace.requests.tolist() == [0] * 5 + [1] * 2
    path = tmp_path / "r.json"
    path.write_text(json.dumps(answers))
    assert TRACE_IMPORTERS["vllm"]([path], MODEL).trace.digest == trace.digest


@pytest.mark.parametrize(
    ("usage", "choices", "phases"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 3}, 1, [0, 0, 0, 1, 1]),
        ({"prompt_tokens": 40, "completion_tokens": 3}, 1, [0, 0, 0, 1, 1]),  # from prompt token 37 on
        ({"prompt_tokens": 40, "completion_tokens": 6}, 1, [1] * 5),  # from the prompt's end on
        ({"prompt_tokens": 3, "completion_tokens": 6}, 2, [0, 0, 0, 1, 1] * 2),  # of both choices together
        ({"prompt_tokens": 3, "completion_tokens": 0}, 1, [0, 0, 0, 1, 1]),
    ],
)
def test_vllm_responses_without_the_start_of_their_prompt_keep_their_phases(tmp_path, usage, choices, phases):
    choice = {"routed_experts": base64_of(npy(routing(5).astype(np.uint8)))}
    (tmp_path / "r.json").write_text(json.dumps([{"usage": usage, "choices": [choice] * choices}]))
    assert TRACE_IMPORTERS["vllm"]([tmp_path / "r.json"], MODEL).trace.phase.tolist() == phases


def test_layers_that_are_named_are_kept_whatever_they_chose(tmp_path):
    np.save(tmp_path / "a.npy", routing(4, dense=()))
    hints = Hints(num_experts=EXPERTS, layer_ids=(0, 2))
    imported = TRACE_IMPORTERS["vllm"]([tmp_path / "a.npy"], hints)
    assert (imported.trace.layer_ids, imported.notes) == ((0, 2), ())
    with pytest.raises(UsageError, match=r"decoder layers 0\.\.2"):
        TRACE_IMPORTERS["vllm"]([tmp_path / "a.npy"], Hints(num_experts=EXPERTS, layer_ids=(3,)))


# SGLang


def sglang_dump(
    tmp_path, name="d.pt", ids=None, mode=1, slots=((1, 0, 2, 3, 4, 5, 0), (0, 1, 2, 3, 4, 5, 5), (5, 4, 3, 2, 1, 0, 3)), **fields
):
    """A per_token dump: logical ids through a physical map, width 8, -1 padded, layer 0 dense."""
    ids = routing(5) if ids is None else ids
    table = torch.tensor(slots)
    physical = np.full((3, len(ids), 8), -1, dtype=np.int32)
    for layer in (1, 2):
        for token in range(len(ids)):
            for i, expert in enumerate(ids[token, layer]):
                physical[layer, token, i] = np.flatnonzero(np.array(slots[layer]) == expert)[-1]
    record = {
        "forward_pass_id": 7,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(len(ids))),
        "positions": list(range(len(ids))),
        "extend_seq_lens": [3, 2] if mode == 1 else None,
        "forward_mode": mode,
        "topk_ids_of_layer": torch.from_numpy(physical),
        "misc_objects": [],
    } | fields
    path = tmp_path / name
    torch.save({"records": [record], "last_physical_to_logical_map": table}, path)
    return path


def test_sglang_tokens_are_mapped_back_to_experts(tmp_path):
    imported = TRACE_IMPORTERS["sglang"]([sglang_dump(tmp_path)], Hints())
    assert imported.trace.layer_ids == (1, 2)
    assert (imported.trace.topk_ids == routing(5)[:, 1:]).all()
    assert imported.trace.requests.tolist() == [0, 0, 0, 1, 1]
    assert imported.trace.phase.tolist() == [0] * 5


def test_sglang_decode_is_a_request_a_token_and_says_so(tmp_path):
    imported = TRACE_IMPORTERS["sglang"]([sglang_dump(tmp_path, mode=2)], Hints())
    assert imported.trace.requests.tolist() == [0, 1, 2, 3, 4]
    assert imported.trace.phase.tolist() == [1] * 5
    assert "names no requests" in imported.notes[-1]


def test_sglang_mixed_passes_have_requests_and_phases_by_position(tmp_path):
    path = sglang_dump(tmp_path, mode=3, positions=[0, 1, 2, 0, 9])
    imported = TRACE_IMPORTERS["sglang"]([path], Hints())
    assert imported.trace.requests.tolist() == [0, 0, 0, 1, 2]
    assert imported.trace.phase.tolist() == [0, 0, 0, 0, 1]
    assert "1 mixed pass of 5 tokens" in imported.notes[-1]


def test_sglang_ranks_that_recorded_the_same_pass_count_once(tmp_path):
    paths = [sglang_dump(tmp_path, "a.pt"), sglang_dump(tmp_path, "b.pt", rank=1)]
    imported = TRACE_IMPORTERS["sglang"](paths, Hints())
    assert imported.trace.num_tokens == 5
    assert "1 pass was recorded by several ranks alike" in imported.notes[-1]
    other = sglang_dump(tmp_path, "c.pt", ids=routing(4, seed=3), extend_seq_lens=[4])
    assert TRACE_IMPORTERS["sglang"]([paths[0], other], Hints()).trace.num_tokens == 9


def test_sglang_statistics_are_counts(tmp_path):
    counts = torch.zeros(4, 3, EXPERTS, dtype=torch.int32)
    counts[0, 1] = torch.tensor([4, 0, 1, 0, 0, 2])
    counts[1, 1] = torch.tensor([1, 0, 0, 0, 0, 0])
    counts[1, 2] = torch.tensor([0, 3, 0, 0, 0, 0])
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, tmp_path / "s.pt")
    imported = TRACE_IMPORTERS["sglang"]([tmp_path / "s.pt"], Hints())
    assert isinstance(imported.trace, LoadProfile)
    assert imported.trace.layer_ids == (1, 2)
    assert expert_loads(imported.trace).tolist() == [[5, 0, 1, 0, 0, 2], [0, 3, 0, 0, 0, 0]]
    assert "by load alone" in imported.notes[-1]


def test_sglang_passes_of_all_ranks_sum_to_logical_counts(tmp_path):
    """By hand: slots 0 and 2 both hold expert 1."""
    record = {
        "forward_pass_id": 0,
        "rank": 0,
        "gatherer_key": "primary",
        "global_physical_count": torch.tensor([[5, 2, 1], [0, 0, 0]], dtype=torch.int32),
    }
    for name in ("a.pt", "b.pt"):
        torch.save({"records": [record], "last_physical_to_logical_map": torch.tensor([[1, 0, 1], [0, 1, 0]])}, tmp_path / name)
    trace = TRACE_IMPORTERS["sglang"]([tmp_path / "a.pt", tmp_path / "b.pt"], Hints()).trace
    assert expert_loads(trace).tolist() == [[4, 12]]


@pytest.mark.parametrize("place", ["meta_info", "sglext", "choice"])
def test_sglang_responses(tmp_path, place):
    ids = routing(4)
    info = {"routed_experts": base64_of(ids.astype("<i4").tobytes())}
    answer = {"meta_info": info | {"prompt_tokens": 2}}
    if place != "meta_info":
        answer = {"usage": {"prompt_tokens": 2}, **({"sglext": info} if place == "sglext" else {"choices": [{"sglext": info}]})}
    (tmp_path / "r.json").write_text(json.dumps(answer))
    trace = TRACE_IMPORTERS["sglang"]([tmp_path / "r.json"], MODEL).trace
    assert (trace.topk_ids == ids[:, 1:]).all()
    assert trace.phase.tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="without their shape; give --model"):
        TRACE_IMPORTERS["sglang"]([tmp_path / "r.json"], Hints())


# TensorRT-LLM


def statistics(tmp_path, files):
    (tmp_path / "meta_info.json").write_text(json.dumps({"num_experts": EXPERTS, "num_experts_per_token": K}))
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    return tmp_path


def test_tensorrt_llm_counts_sum_over_ranks_and_iterations(tmp_path):
    one, two = np.arange(EXPERTS), np.ones(EXPERTS, dtype=np.int64)
    folder = statistics(
        tmp_path, {"rank0.safetensors": {"5_3": one, "6_3": two, "5_4": two}, "rank1.safetensors": {"5_3": two, "5_4": two}}
    )
    trace = TRACE_IMPORTERS["tensorrt-llm"]([folder], Hints()).trace
    assert trace.layer_ids == (3, 4)
    assert expert_loads(trace).tolist() == [[2, 3, 4, 5, 6, 7], [2] * 6]
    assert TRACE_IMPORTERS["tensorrt-llm"]([folder], Hints(layer_ids=(4,))).trace.layer_ids == (4,)


def test_tensorrt_llm_raw_choices_keep_co_activation(tmp_path):
    ids = routing(5, dense=()).astype(np.int64)
    files = {
        "rank0_raw.safetensors": {"5_3": ids[:, 1].copy(), "5_4": ids[:, 2].copy(), "6_3": ids[:2, 1].copy(), "6_4": ids[:1, 2].copy()},
        "rank1_raw.safetensors": {"5_3": ids[:, 1].copy(), "5_4": ids[:, 2].copy()},
        "rank0.safetensors": {"5_3": np.ones(EXPERTS, dtype=np.int64)},
    }
    imported = TRACE_IMPORTERS["tensorrt-llm"]([statistics(tmp_path, files)], Hints())
    assert imported.trace.layer_ids == (3, 4)
    assert (imported.trace.topk_ids == ids[:, 1:]).all()
    assert imported.trace.request_ids is None
    assert imported.notes[1:] == (
        "1 iteration of up to 2 tokens left out: their layers saw different numbers of tokens",
        "1 iteration was recorded by several ranks alike: counted once",
    )


# llama.cpp


def test_llama_cpp_rows_are_tokens_where_k_is_known(tmp_path):
    """A batch of 3 tokens whose last layer was computed for the last token alone, and a batch of one token."""
    batches = [[(0, 1), (2, 3), (4, 5)], [(5, 0)]], [[(1, 0)], [(3, 2)]]
    rows = [(layer, expert) for batch in batches for layer, tokens in enumerate(batch, start=1) for token in tokens for expert in token]
    path = tmp_path / "t.csv"
    path.write_text("layer,expert\n" + "".join(f"{layer},{expert}\n" for layer, expert in rows))
    trace = TRACE_IMPORTERS["llama.cpp"]([path], Hints(num_experts=EXPERTS, top_k=2)).trace
    assert trace.layer_ids == (1, 2)
    assert trace.topk_ids.tolist() == [[[0, 1], [-1, -1]], [[2, 3], [-1, -1]], [[4, 5], [5, 0]], [[1, 0], [3, 2]]]
    assert trace.requests.tolist() == [0, 0, 0, 1]
    counts = TRACE_IMPORTERS["llama.cpp"]([path], Hints(num_experts=EXPERTS))
    assert isinstance(counts.trace, LoadProfile)
    assert expert_loads(counts.trace).tolist() == [[2, 2, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]]
    assert "--top-k" in counts.notes[-1]


# NumPy


def test_npz(tmp_path):
    ids = routing(4, dense=())
    np.savez_compressed(
        tmp_path / "a.npz", topk_ids=ids, request_ids=np.array([0, 0, 1, 1]), layer_ids=np.array([3, 5, 7]), num_experts=EXPERTS
    )
    trace = TRACE_IMPORTERS["npz"]([tmp_path / "a.npz"], Hints()).trace
    assert (trace.topk_ids == ids).all()
    assert (trace.layer_ids, trace.num_experts, trace.requests.tolist()) == ((3, 5, 7), EXPERTS, [0, 0, 1, 1])
    np.savez(tmp_path / "b.npz", expert_load=np.array([[3, 1], [0, 0]]))
    trace = TRACE_IMPORTERS["npz"]([tmp_path / "b.npz"], Hints()).trace
    assert (type(trace), trace.layer_ids, expert_loads(trace).tolist()) == (LoadProfile, (0,), [[3, 1]])


def test_recording_with_vllm_where_it_is_not_installed():
    from grace_moe.engines.vllm.recording import record_with_vllm

    sizes = RecordingSizes(requests=1, prompt_tokens=1, new_tokens=1, batch_size=1, dtype="float32")
    with pytest.raises(UsageError, match="vllm is not installed here"):
        record_with_vllm("m", ["text"], sizes, name="", dataset="")
