"""Step 12: which of its placements each layer takes, by hand, and what always holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.candidates import Candidate, choose_candidates, excess

LAYER = LayerPlacement(layer_id=0, devices_of_expert=((0,),), replica_weights=((1.0,),))


def candidate(traffic, *peaks):
    return Candidate(layer=LAYER, origin="search", peaks=np.array(peaks), traffic=traffic)


def test_excess_by_hand():
    """Floors of 1 and 3 in two layers, peaks of 2 and 3 on one day, 2 and 5 on the other: 5/4 and 7/4."""
    peaks, floors = np.array([[2.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    assert excess(peaks, floors, 0.0) == pytest.approx(1.5)
    assert excess(peaks, floors, 2.0) == pytest.approx(2.0)


def test_one_layer_makes_up_for_another():
    """Balance costs 1 copy in layer 0 and 0.1 in layer 1: only layer 1 pays, and the mean is within the tolerance."""
    floors = np.ones((2, 1))
    options = [[candidate(1.0, 1.1), candidate(2.0, 1.0)], [candidate(1.0, 1.1), candidate(1.1, 1.0)]]
    assert choose_candidates(options, floors, 1.2, 0.0) == (0, 0)
    assert choose_candidates(options, floors, 1.06, 0.0) == (0, 1)
    assert choose_candidates(options, floors, 1.0, 0.0) == (1, 1)
    assert choose_candidates(options, floors, 0.99, 0.0) is None


def test_doubt_prefers_the_steady():
    floors = np.ones((1, 2))
    options = [[candidate(1.0, 0.9, 1.1), candidate(1.5, 1.01, 1.01)]]
    assert choose_candidates(options, floors, 1.02, 0.0) == (0,)
    assert choose_candidates(options, floors, 1.02, 1.0) == (1,)


@given(seed=st.integers(0, 9999), layers=st.integers(1, 4), tolerance=st.floats(1.0, 1.3), doubt=st.floats(0, 2))
def test_the_floor_among_the_candidates_always_meets_the_tolerance(seed, layers, tolerance, doubt):
    generator = np.random.default_rng(seed)
    floors = 1 + generator.random((layers, 5))
    options = [
        [*(candidate(generator.random(), *(1 + 2 * generator.random(5))) for _ in range(3)), candidate(2.0, *floor)] for floor in floors
    ]
    chosen = choose_candidates(options, floors, tolerance + 1e-9, doubt)
    assert chosen is not None
    peaks = np.stack([row[index].peaks for row, index in zip(options, chosen, strict=True)])
    assert excess(peaks, floors, doubt) <= tolerance + 1e-9
