"""Our lockstep loop against Transformers' own generate, and its bookkeeping."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from grace_moe.embedded import embedded_model
from grace_moe.runtime.job.choosing import GREEDY, Chooser, Sampling
from grace_moe.runtime.job.generation import GenerationOptions, Request, generate
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.model.description import load_tokenizer
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


SAMPLED = GenerationOptions(new_tokens=6, stop_at_eos=False, sampling=Sampling(temperature=1.5, top_p=0.9, seed=3))


def test_a_request_draws_the_same_in_whatever_batch_and_order(model):
    requests = requests_of([5, 2, 9, 4, 7])
    by_batch = [
        generate(model, asked, replace(SAMPLED, batch_size=size)) for asked, size in ((requests, 8), (requests, 1), (requests[::-1], 2))
    ]
    told = [{c.request_id: c.tokens for c in result.completions} for result in by_batch]
    assert told[0] == told[1] == told[2]
    other = generate(model, requests, replace(SAMPLED, sampling=replace(SAMPLED.sampling, seed=4)))
    assert {c.request_id: c.tokens for c in other.completions} != told[0]
    alike = [replace(requests[0], request_id=i) for i in range(4)]
    assert len({c.tokens for c in generate(model, alike, SAMPLED).completions}) > 1  # requests draw apart


def test_drawing_from_the_likeliest_alone_is_greedy(model):
    requests = requests_of([5, 2, 9])
    greedy = generate(model, requests, replace(SAMPLED, sampling=GREEDY))
    for sampling in (Sampling(temperature=1.5, top_k=1), Sampling(temperature=1.5, top_p=0.0)):
        assert generate(model, requests, replace(SAMPLED, sampling=sampling)).completions == greedy.completions


def test_draws_follow_the_probabilities():
    """Chi-squared of 4,000 draws of five tokens, and never one that top-k leaves out."""
    logits = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0]).repeat(4000, 1)
    chosen = Chooser(Sampling(temperature=0.7, top_k=4, seed=1), range(4000)).next_tokens(torch.zeros((4000, 1), dtype=torch.int64), logits)
    expected = 4000 * (logits[0, :4] / 0.7).softmax(dim=0)
    counts = torch.bincount(chosen, minlength=5)
    assert counts[4] == 0
    assert float(((counts[:4] - expected) ** 2 / expected).sum()) < 16.3  # 99.9% of the time, of three degrees of freedom


@pytest.mark.parametrize("stops", [["the"], [" the", "\n"], ["no such text"]])
def test_stop_strings_are_those_of_transformers_generate(stops):
    embedded, tokenizer = load_whole_model(str(embedded_model())), load_tokenizer(str(embedded_model()))
    requests = [Request(request_id=i, prompt=tuple(tokenizer.encode(text))) for i, text in enumerate(["The experts", "Once upon a time"])]
    result = generate(embedded, requests, GenerationOptions(new_tokens=12, stop_strings=tuple(stops)), tokenizer=tokenizer)
    for request, completion in zip(requests, result.completions, strict=True):
        ids = torch.tensor([request.prompt])
        oracle = embedded.generate(ids, max_new_tokens=12, do_sample=False, stop_strings=stops, tokenizer=tokenizer)
        assert list(completion.tokens) == oracle[0, ids.shape[1] :].tolist()


def test_tokens_are_told_pass_by_pass_with_the_last_of_each_request(model):
    requests, heard = requests_of([4, 6]), []
    result = generate(model, requests, GenerationOptions(new_tokens=3, stop_at_eos=False), on_tokens=heard.append)
    assert [[said.request_id for said in of_pass] for of_pass in heard] == [[0, 1]] * 3
    assert [[said.last for said in of_pass] for of_pass in heard] == [[False, False], [False, False], [True, True]]
    for completion in result.completions:
        assert [said.token for of_pass in heard for said in of_pass if said.request_id == completion.request_id] == list(completion.tokens)


def test_a_job_crosses_the_pipe_unchanged():
    options = replace(SAMPLED, stop_strings=("a", "\n"))
    runs = (RunSpec(name="a", placement="plan.json", dispatch="flat"),)
    job = Job(model="m", requests=requests_of([3, 2]), options=options, runs=runs, dtype="bfloat16", timeout_seconds=7.0)
    assert Job.from_json(job.to_json()) == job
