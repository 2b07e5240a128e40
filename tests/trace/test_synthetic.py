"""Synthetic traces."""

from grace_moe.trace import (
    skew,
    synthetic_trace,
)


def test_synthetic_traces_repeat_and_are_skewed():
    make = {"tokens": 2000, "experts": 16, "top_k": 2, "layers": 2}
    assert synthetic_trace(**make).digest == synthetic_trace(**make).digest != synthetic_trace(**make, seed=1).digest
    assert (skew(synthetic_trace(**make, skew=1.5)) > skew(synthetic_trace(**make, skew=0.0, affinity=0.0))).all()
    assert synthetic_trace(tokens=0, experts=4, top_k=2).num_tokens == 0
