"""A layer's time from its flows: transports, expert compute, waiting and overlap."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.cost.backends import BACKENDS
from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, Flows, total
from grace_moe.cost.hardware import presets
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting, layer_seconds, step_time
from grace_moe.errors import UsageError
from grace_moe.topology import PRESETS, Topology

MODEL = ModelSizes(num_experts=4, top_k=2, hidden_size=1000, expert_size=1000, weight_bytes=1.0)


def flows_of(load=(4, 4, 4, 4), copies=1.0) -> Flows:
    """One layer on 2x2, 8 tokens; each device sends so many copies of every kind inside its node, and as many to the other."""
    ports = np.full((1, 4, 2, 4, 2), float(copies))
    ports[:, BETWEEN_NODES, :, :, 0] = ports[:, INSIDE_NODES, :, :, 1] = 0
    return Flows(
        tokens=np.full(4, 2.0), ports=ports, per_rate=None, slot_device=np.arange(4)[None], slot_pairs=np.array([load], dtype=float)
    )


def linked(inside, across) -> Topology:
    """2x2 of these bandwidths, without latency."""
    links = {
        "intra_node": {"bandwidth_bytes_per_s": inside, "latency_s": 0},
        "cross_node": {"bandwidth_bytes_per_s": across, "latency_s": 0},
    }
    return Topology.from_dict(Topology.parse("2x2").to_dict() | {"links": links})


def test_by_hand():
    """Hidden states of 2,000 bytes; ours carry two slots and weights, 12 more. 100 B/s inside, 10 between; the batch is as many tokens
    as were counted."""
    topology, setting = linked(100, 10), Setting(model=MODEL, batch_tokens=8)
    for backend, dispatch, combine in (
        ("vanilla", 200.0, 200.0),  # the slower of 2,000 / 10 and 2,000 / 100
        ("flat", 201.2, 200.0),
        ("hierarchical", 201.2 + 20.12, 220.0),
        ("allgather", 8 * 2000 * (1 / 2 / 100 + 1 / 2 / 20), 8 * 2000 * (1 / 2 / 100 + 1 / 2 / 20)),
    ):
        found = layer_seconds(flows_of(), topology, replace(setting, backend=backend))
        assert (found["dispatch"][0], found["combine"][0]) == pytest.approx((dispatch, combine)), backend


def test_waiting_is_what_the_busiest_device_adds():
    topology = Topology.parse("2x2:h100-400g")
    setting = Setting(model=MODEL, batch_tokens=100_000_000)
    even, skewed = (step_time(flows_of(load), topology, setting) for load in ((4, 4, 4, 4), (10, 2, 2, 2)))
    assert even.idle == 0
    assert skewed.compute + skewed.idle == pytest.approx(2.5 * even.compute, rel=0.01)


def test_in_small_decode_batches_balance_buys_nothing():
    topology = Topology.parse("2x2:h100-400g")
    setting = Setting(model=MODEL, phase="decode", batch_tokens=64)
    even, skewed = (step_time(flows_of(load), topology, setting) for load in ((4, 4, 4, 4), (7, 3, 3, 3)))
    assert skewed.total == pytest.approx(even.total, rel=0.01)


def test_overlap_hides_the_shorter():
    topology = Topology.parse("2x2:h100-400g")
    setting = Setting(model=MODEL, batch_tokens=100_000)
    in_turn, overlapped, half = (step_time(flows_of(), topology, replace(setting, overlap=share)) for share in (0.0, 1.0, 0.5))
    sending, computing = in_turn.dispatch + in_turn.combine, in_turn.compute + in_turn.idle
    assert overlapped.total == pytest.approx(max(sending, computing))
    assert half.total == pytest.approx((in_turn.total + overlapped.total) / 2)


@given(
    backend=st.sampled_from(sorted(BACKENDS)),
    preset=st.sampled_from(sorted(PRESETS)),
    phase=st.sampled_from(["prefill", "decode"]),
    batch=st.integers(1, 10**6),
    more=st.floats(0, 20),
)
def test_more_copies_never_take_less(backend, preset, phase, batch, more):
    topology = Topology.parse(f"2x2:{preset}")
    setting = Setting(model=MODEL, phase=phase, batch_tokens=batch, backend=backend)
    less, longer = (step_time(flows_of(copies=copies), topology, setting) for copies in (1.0, 1.0 + more))
    assert 0 < less.total <= longer.total * (1 + 1e-12)


def test_a_slower_device_is_waited_for():
    value = Topology.parse("2x2:h100-400g").to_dict()
    value["nodes"][1]["devices"][1]["relative_speed"] = 0.5
    setting = Setting(model=MODEL, batch_tokens=1_000_000)
    fast, slow = (step_time(flows_of(), Topology.from_dict(each), setting) for each in (Topology.parse("2x2:h100-400g").to_dict(), value))
    assert slow.compute + slow.idle == pytest.approx(2 * fast.compute)


def test_flows_add_up():
    half = flows_of((1, 2, 3, 4))
    both = total([half, half], [1.0, 1.0])
    setting = Setting(model=MODEL, batch_tokens=4096)
    one, two = (step_time(flows, Topology.parse("2x2"), setting) for flows in (half, both))
    assert one.total == pytest.approx(two.total)
    assert both.ports[0, PAIRS].sum() == 2 * half.ports[0, FLAT].sum()


def test_every_preset_of_links_has_its_devices():
    assert {name.split("-")[0] for name in PRESETS} == set(presets())
    assert all(hardware.source and hardware.calibration.compute for hardware in presets().values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"phase": "train"}, "phase 'train' is unknown"),
        ({"backend": "pplx"}, "backend 'pplx' is unknown"),
        ({"batch_tokens": 0}, "batch 0 is no number of tokens"),
        ({"overlap": 1.5}, "overlap 1.5 is not a share from 0 to 1"),
    ],
)
def test_settings_out_of_range(change, text):
    with pytest.raises(UsageError, match=text):
        Setting(**change)
