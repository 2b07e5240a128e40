import numpy as np
import pytest

from grace_moe.adapt import Prices
from grace_moe.adapt.judge import Trial, gains_of
from grace_moe.adapt.request_costs import RequestCosts


def gains(saved, tokens=None):
    """Of candidates that save so many copies of each request, `[layers, requests]`."""
    saved = np.asarray(saved, float)
    tokens = np.ones(saved.shape[1]) if tokens is None else np.asarray(tokens, float)
    even = np.ones((saved.shape[1], 2))
    candidates = [RequestCosts(tokens=tokens, copies=10 - row, pairs=even) for row in saved]
    serving = [RequestCosts(tokens=tokens, copies=np.full(saved.shape[1], 10.0), pairs=even)] * len(saved)
    return gains_of([Trial(candidates=candidates, serving=serving)], Prices(), seed=0)


def test_what_every_request_saves_is_sure():
    for gain in gains(np.ones((3, 20))):
        assert (gain.mean, gain.low) == pytest.approx((1.0, 1.0))


def test_a_gain_that_depends_on_one_request_is_not_sure():
    [gain] = gains([[0] * 19 + [2]])
    assert gain.mean == pytest.approx(0.1)
    assert gain.low <= 0


def test_a_long_request_is_one():
    saved = np.random.default_rng(0).normal(1.0, 1.0, size=20)
    assert gains([saved])[0].low > 0
    lengths = np.array([40] + [1] * 19)
    assert gains([saved * lengths], tokens=lengths)[0].low <= 0


def test_of_candidates_that_save_nothing_one_set_in_a_hundred_is_taken_for_better():
    """24 layers, 12 requests that choose alike in part of them: 300 sets without a true gain."""
    random = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        noise = random.normal(size=(24, 12)) + random.normal(size=12)
        told += any(gain.low > 0 for gain in gains(noise))
    assert told <= 9  # 3 are expected; more than 9 come by chance once in 900 times


def test_the_best_of_many_layers_is_drawn_towards_the_others():
    random = np.random.default_rng(1)
    alike = gains(random.normal(0.5, 1.0, size=(24, 30)))
    assert max(gain.mean for gain in alike) < 0.75  # the true gain is 0.5 in all; the best of the means is 0.9
    apart = gains(np.repeat([[0.1], [2.0]], 12, axis=0) + random.normal(size=(24, 30)) * 0.3)
    assert min(gain.mean for gain in apart[12:]) > 1.8
    assert min(gain.low for gain in apart[12:]) > 1.5
    assert max(gain.mean for gain in apart[:12]) < 0.35
