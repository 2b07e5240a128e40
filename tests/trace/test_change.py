import numpy as np

from grace_moe.trace import RoutingTrace
from grace_moe.trace.change import change_between

EXPERTS, LAYERS = 16, 3


def traffic(random, popularity, requests, tokens=6):
    """Requests that each prefer a few experts: tokens of a request are alike."""
    ids = []
    for _ in range(requests):
        taste = popularity + random.gumbel(size=(LAYERS, EXPERTS))
        ids.append([np.argsort(-(taste + 0.5 * random.gumbel(size=(LAYERS, EXPERTS))), axis=1)[:, :2] for _ in range(tokens)])
    return trace_of(np.concatenate(ids), np.repeat(np.arange(requests), tokens))


def trace_of(ids, requests):
    return RoutingTrace(
        topk_ids=ids.astype(np.int16), num_experts=EXPERTS, layer_ids=tuple(range(ids.shape[1])), request_ids=requests.astype(np.int32)
    )


def test_chances_are_true_where_nothing_changed():
    """Of 200 tests without a change, as many have a chance below p as p says, though tokens of a request are alike."""
    random = np.random.default_rng(1)
    popularity = random.normal(size=(LAYERS, EXPERTS))
    chances = [change_between(traffic(random, popularity, 24), traffic(random, popularity, 16), seed=n).chance for n in range(200)]
    assert np.mean(np.array(chances) < 0.05) <= 0.09
    assert np.mean(np.array(chances) < 0.5) <= 0.6
    assert np.mean(np.array(chances) < 0.005) <= 0.02


def test_another_taste_is_told():
    random = np.random.default_rng(2)
    popularity = random.normal(size=(LAYERS, EXPERTS))
    found = change_between(traffic(random, popularity, 60), traffic(random, popularity[:, ::-1], 40))
    assert found.chance < 1e-8
    assert found.distance > 2 * found.expected
    assert found.compared == (60, 40)


def test_too_few_requests_tell_nothing():
    random = np.random.default_rng(3)
    popularity = random.normal(size=(LAYERS, EXPERTS))
    found = change_between(traffic(random, popularity, 60), traffic(random, popularity[:, ::-1], 7))
    assert (found.chance, found.compared) == (1.0, (60, 7))


def test_equal_loads_are_no_change():
    same = trace_of(np.tile(np.array([[0, 1]]), (20, 1, 1)), np.arange(20))
    assert change_between(same, same).chance == 1.0


def test_the_same_seed_gives_the_same_answer():
    random = np.random.default_rng(4)
    popularity = random.normal(size=(LAYERS, EXPERTS))
    before, recent = traffic(random, popularity, 30), traffic(random, popularity, 30)
    assert change_between(before, recent, seed=7) == change_between(before, recent, seed=7)
