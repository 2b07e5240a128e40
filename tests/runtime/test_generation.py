"""Our lockstep loop against Transformers' own generate, and its bookkeeping."""

import pytest

torch = pytest.importorskip("torch")

from grace_moe.runtime.job.generation import GenerationOptions, generate
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.trace import DECODE, PREFILL

from .conftest import requests_of


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_whole_model(str(tiny_model))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_tokens_are_those_of_transformers_greedy_generate(model, batch_size):
    requests = requests_of([5, 2, 9, 4, 7])
    result = generate(model, requests, GenerationOptions(new_tokens=6, batch_size=batch_size))
    for request, completion in zip(requests, result.completions, strict=True):
        oracle = model.generate(torch.tensor([request.prompt]), max_new_tokens=6, do_sample=False)[0, len(request.prompt) :].tolist()
        assert list(completion.tokens) == oracle


def test_steps_say_which_rows_are_tokens(model):
    """Two prompts of 3 and 5 tokens in one batch: 2 rows of padding, then one row a request and step."""
    steps = []
    options = GenerationOptions(new_tokens=3, batch_size=2, stop_at_eos=False)
    result = generate(model, requests_of([3, 5]), options, before_step=steps.append)
    assert [s.phase for s in steps] == [PREFILL, DECODE, DECODE]
    assert steps[0].valid.tolist() == [False, False, True, True, True] + [True] * 5
    assert steps[0].request_ids.tolist() == [0] * 5 + [1] * 5
    assert [len(s.valid) for s in steps[1:]] == [2, 2]
    assert result.passes == 3
    assert result.decode_passes == 2


def test_an_idle_rank_makes_the_same_passes_with_no_token(model):
    steps = []
    options = GenerationOptions(new_tokens=3, batch_size=2, stop_at_eos=False)
    result = generate(model, [], options, num_batches=2, before_step=steps.append)
    assert result.completions == ()
    assert result.passes == 6
    assert not any(s.valid.any() for s in steps)


def test_a_request_that_ended_is_no_longer_a_token(model):
    """One request ends at once: its later rows are not real."""
    requests = requests_of([4, 6])
    first = generate(model, requests, GenerationOptions(new_tokens=1)).completions[0].tokens[0]
    model.generation_config.eos_token_id, before = [first], model.generation_config.eos_token_id
    try:
        steps = []
        result = generate(model, requests, GenerationOptions(new_tokens=4), before_step=steps.append)
    finally:
        model.generation_config.eos_token_id = before
    assert result.completions[0].tokens == (first,)
    assert steps[1].valid.tolist()[0] is False
