"""Which rank a request gets, and how it is told, by hand."""

import json

import pytest

from grace_moe.choice import Budget
from grace_moe.errors import UsageError
from grace_moe.frontend.dispatcher import RANK_HEADER
from grace_moe.frontend.serve import check_upstream, dispatcher_of
from tests.frontend.samples import placement, trace


def dispatcher(engine="vllm", **options):
    return dispatcher_of(placement(), engine, **({"trace": trace()} | options))


def body(*tokens, **fields):
    return json.dumps({"prompt": list(tokens)} | fields).encode()


def test_prompts_go_to_the_node_of_their_experts():
    front = dispatcher()
    found = [front.place("/v1/completions", [], body(*tokens)) for tokens in ([0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5])]
    assert [placed.rank for placed in found] == [0, 2, 1, 3]
    assert [placed.headers for placed in found] == [[(RANK_HEADER, str(placed.rank).encode())] for placed in found]
    assert front.status()["requests"] == front.status()["in_flight"] == [1, 1, 1, 1]
    front.done(0)
    assert front.status()["in_flight"] == [0, 1, 1, 1]


def test_a_burst_of_one_topic_does_not_pass_the_budget():
    front = dispatcher(budget=Budget(tokens=30, horizon=1e6))
    for _ in range(60):
        front.place("/v1/completions", [], body(*[0] * 10))
    assert max(front.status()["lead_tokens"]) <= 40
    assert sum(front.status()["requests"][:2]) >= 31


def test_without_a_trace_requests_are_evened_out():
    front = dispatcher(trace=None)
    for _ in range(8):
        front.place("/v1/completions", [], body(0, 2))
    assert front.status()["requests"] == [2, 2, 2, 2]
    assert front.status()["prompt_unknown"] == 8


def test_a_client_that_names_its_rank_keeps_it():
    front = dispatcher("sglang")
    placed = front.place("/v1/completions", [(RANK_HEADER, b"3")], body(0))
    assert (placed.rank, placed.headers) == (3, [(RANK_HEADER, b"3")])
    placed = front.place("/generate", [], body(0, routed_dp_rank=2))
    assert (placed.rank, placed.headers, json.loads(placed.body)["routed_dp_rank"]) == (2, [], 2)
    assert front.status()["rank_named_by_client"] == 2


def test_sglangs_own_path_reads_the_rank_from_the_body():
    placed = dispatcher("sglang").place("/generate", [], json.dumps({"input_ids": [1, 3], "stream": True}).encode())
    assert json.loads(placed.body) == {"input_ids": [1, 3], "stream": True, "routed_dp_rank": placed.rank}


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 5000])
def test_bodies_that_are_no_object_are_the_engines_to_refuse(damaged):
    assert dispatcher().place("/v1/completions", [], damaged) is None


def test_only_what_generates_is_placed():
    front = dispatcher()
    assert front.places("POST", "/v1/completions")
    assert not front.places("GET", "/v1/completions")
    assert not front.places("POST", "/v1/embeddings")


@pytest.mark.parametrize("address", ["localhost:8000", "http://", "ftp://a", "http://a/v1", "http://a:99999", "http://a:b", "http://a?x=1"])
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError, match="--upstream"):
        check_upstream(address)


def test_an_address():
    assert check_upstream("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
