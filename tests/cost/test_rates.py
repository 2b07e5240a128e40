"""Exchange rates: which of copies, balance and active experts a second goes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.cost.backends import BACKENDS
from grace_moe.cost.rates import exchange_rates
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.errors import TopologyError, UsageError
from grace_moe.topology import PRESETS, Topology

V3 = ModelSizes(num_experts=256, top_k=8, hidden_size=7168, expert_size=2048, weight_bytes=1.0)
H100 = Topology.parse("4x8:h100-400g")


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    backend=st.sampled_from(sorted(BACKENDS)),
    phase=st.sampled_from(["prefill", "decode"]),
    batch=st.floats(1, 1e6),
)
def test_rates_are_seconds_and_compute_is_bound_by_one_thing(preset, backend, phase, batch):
    rates = exchange_rates(Topology.parse(f"2x8:{preset}"), V3, phase=phase, batch=batch, backend=backend)
    assert all(0 <= value < 1 for value in rates.to_dict().values())
    assert (rates.pair > 0) != (rates.active_expert > 0)
    assert rates.fixed > 0


def test_small_batches_pay_for_active_experts_and_large_ones_for_pairs():
    small, large = (exchange_rates(H100, V3, phase="decode", batch=batch, backend="deepep_low_latency") for batch in (64, 262_144))
    assert small.active_expert > 0 < large.pair
    assert small.pair == large.active_expert == 0


def test_low_latency_sends_pairs_and_the_others_copies():
    low = exchange_rates(H100, V3, batch=4096, backend="deepep_low_latency")
    high = exchange_rates(H100, V3, batch=4096, backend="deepep_high_throughput")
    assert low.cross_node_copy == high.cross_node_pair == 0
    assert low.cross_node_pair > low.intra_node_pair > 0
    assert high.cross_node_copy > high.intra_node_copy > 0


def test_every_token_everywhere_costs_the_same_whatever_the_plan():
    rates = exchange_rates(H100, OLMOE, batch=4096, backend="allgather")
    assert (rates.cross_node_copy, rates.intra_node_copy, rates.cross_node_pair, rates.intra_node_pair) == (0, 0, 0, 0)


@pytest.mark.parametrize("backend", ["hierarchical", "deepep_high_throughput", "deepep_low_latency", "vanilla"])
def test_slower_links_make_copies_dearer_in_proportion(backend):
    what = "cross_node_pair" if backend in ("vanilla", "deepep_low_latency") else "cross_node_copy"
    fast, slow = (exchange_rates(Topology.parse(shape), OLMOE, batch=32768, backend=backend) for shape in ("4x8:a100-200g", "4x8:a100-25g"))
    assert getattr(slow, what) == pytest.approx(8 * getattr(fast, what), rel=0.01)


def test_what_is_wrong_is_said():
    with pytest.raises(UsageError, match="phase 'train' is unknown; use prefill or decode"):
        exchange_rates(H100, OLMOE, phase="train", batch=1, backend="flat")
    with pytest.raises(UsageError, match="backend 'pplx' is unknown; use one of vanilla, flat"):
        exchange_rates(H100, OLMOE, batch=1, backend="pplx")
    with pytest.raises(UsageError, match="batch 0 is no number of tokens"):
        exchange_rates(H100, OLMOE, batch=0, backend="flat")
    unknown = Topology.from_dict(H100.to_dict() | {"hardware": "tpu"})
    with pytest.raises(TopologyError, match="hardware: 'tpu' is unknown; use one of a100, b200"):
        exchange_rates(unknown, OLMOE, batch=1, backend="flat")
