import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Monitor
from grace_moe.adapt.repeats import without_repeats

PROMPTS = np.argsort(np.random.default_rng(0).random((30, 40, 8, 16)), axis=3)[..., :2].astype(np.int16)
"""`[prompts, tokens, layers, k]`"""


def arrivals(prompts, share, seed, texts=PROMPTS):
    """Choices and request of a share of the tokens of each prompt that comes in."""
    random = np.random.default_rng(seed)
    kept = [np.flatnonzero(random.random(texts.shape[1]) < share) for _ in prompts]
    ids = np.concatenate([texts[prompt][rows] for prompt, rows in zip(prompts, kept, strict=True)])
    return ids, np.repeat(np.arange(len(prompts)) + 100, [len(rows) for rows in kept])


@given(prompts=st.lists(st.integers(0, 29), min_size=20, max_size=60), seed=st.integers(0, 99))
def test_prompts_that_come_again_are_one_request(prompts, seed):
    ids, requests = arrivals(prompts, 0.7, seed)
    found = without_repeats(ids, requests)
    prompt_of, number = np.array(prompts)[requests - 100], np.unique(found, return_inverse=True)[1]
    most = np.bincount(prompts).max()
    for prompt in np.unique(prompts):
        assert len(np.unique(number[prompt_of == prompt])) == 1 or most > len(prompts) / 8
    assert all(len(np.unique(prompt_of[number == one])) == 1 for one in np.unique(number))


def test_few_tokens_in_common_are_enough_where_choices_tell_texts_apart():
    ids, requests = arrivals(list(range(30)) * 2, 0.3, 1)
    assert 30 <= len(np.unique(without_repeats(ids, requests))) < 38


def test_a_system_prompt_makes_no_repeats():
    texts = PROMPTS.copy()
    texts[:, :20] = texts[0, :20]
    ids, requests = arrivals(list(range(30)), 1.0, 0, texts)
    assert (without_repeats(ids, requests) == requests).all()


def test_first_words_in_common_make_no_repeats():
    texts = PROMPTS.copy()
    texts[:2, :3] = texts[0, :3]
    ids, requests = arrivals(list(range(30)), 1.0, 0, texts)
    assert (without_repeats(ids, requests) == requests).all()


def test_where_all_tokens_choose_alike_nothing_is_a_repeat():
    """One layer, three experts: tokens of any text choose one of three pairs."""
    texts = np.argsort(np.random.default_rng(0).random((30, 40, 1, 3)), axis=3)[..., :2].astype(np.int16)
    ids, requests = arrivals(list(range(30)), 1.0, 0, texts)
    assert (without_repeats(ids, requests) == requests).all()


def test_a_sample_has_prompts_once():
    monitor = Monitor(range(8), 16, 2)
    for step in range(4):
        monitor.observe(PROMPTS[:10].reshape(-1, 8, 2), np.repeat(np.arange(10) + 10 * step, 40))
    assert len(np.unique(monitor.sample().requests)) == 10
    assert len(np.unique(monitor.sample(since=2).requests)) == 10
