"""Flows count what `evaluate` counts, by device, tier and part."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, total
from grace_moe.evaluation import evaluate
from grace_moe.evaluation.flows import replay_flows
from grace_moe.topology import Topology
from tests.evaluation.cases import cases, placement_of, topology_of, trace_of


@settings(max_examples=40)
@given(case=cases(), parts=st.integers(1, 3))
def test_they_are_what_evaluate_counts(case, parts):
    placement, trace, seed = case
    found = evaluate(placement, trace, seed=seed)
    flows = total(replay_flows(placement, trace, parts=parts, seed=seed), [1.0] * parts)
    sent = flows.ports.sum(axis=3)
    assert (sent[:, :, 0] == sent[:, :, 1]).all()  # what is sent is taken in
    by_kind = sent[:, :, 0].sum(axis=2)
    copies = found.copies
    for kind, counted in (
        (PAIRS, copies.pairs),
        (FLAT, copies.flat),
        (BETWEEN_NODES, copies.cross_node),
        (INSIDE_NODES, copies.intra_node),
    ):
        assert by_kind[:, kind].tolist() == counted.tolist()
    node = placement.topology.num_nodes > 1
    assert sent[:, PAIRS, 0, -1].tolist() == (copies.pairs_cross_node * node).tolist()
    speed = placement.topology.relative_speed
    assert np.allclose(flows.pairs_of_device() / speed, found.device_load)
    assert flows.num_tokens == found.num_tokens


def test_a_part_takes_whole_rounds_over_the_devices():
    trace = trace_of(np.zeros((48, 1, 1), dtype=np.int16), 4, request_ids=np.arange(48, dtype=np.int32) // 2)
    placement = placement_of(Topology.parse("2x2"), [[0], [1], [2], [3]])
    flows = replay_flows(placement, trace, parts=6)
    assert [part.tokens.tolist() for part in flows] == [[2.0] * 4] * 6  # 24 requests of 2 tokens are 6 rounds over 4 devices
    assert [part.tokens.sum() for part in replay_flows(placement, trace, parts=8)] == [6.0] * 8  # fewer rounds than parts


def test_one_phase_alone():
    trace = trace_of([[[0]], [[1]], [[0]]], 2, phase=np.array([0, 0, 1], dtype=np.uint8))
    placement = placement_of(topology_of([1, 1]), [[0], [1]])
    assert [replay_flows(placement, trace, phase=phase)[0].num_tokens for phase in ("prefill", "decode", None)] == [2, 1, 3]


def test_a_matrix_is_counted_by_its_bandwidths():
    """Token 0 comes in on device 0 and goes to device 1 over 4 B/s; token 1 on device 1 to device 0 over 8 B/s."""
    topology = replace(Topology.parse("2x1"), bandwidth=((1.0, 4.0), (8.0, 1.0)))
    placement = placement_of(topology, [[0], [1]])
    flows = replay_flows(placement, trace_of([[[1]], [[0]]], 2))[0]
    assert flows.per_rate is not None
    assert flows.per_rate[0, PAIRS] == pytest.approx(np.array([[1 / 4, 1 / 8], [1 / 8, 1 / 4]]))
