"""What backends send of a token: by hand, and against what evaluation counts."""

import numpy as np
import pytest
from hypothesis import given

from grace_moe.cost.backends import BACKENDS
from grace_moe.cost.sent import SENDS, copies_between_nodes, other_backend, sends_of
from grace_moe.errors import UsageError
from grace_moe.evaluation import evaluate
from grace_moe.evaluation.route import route
from grace_moe.evaluation.serving import Serving, arrivals
from grace_moe.topology import Topology

from ..evaluation.cases import cases, placement_of

SHAPE = Topology.parse("3x2")


def test_by_hand():
    """A token of device 0 needs both devices of node 1, one of them twice, and one of node 2; another needs its own node alone."""
    devices, sources = np.array([[2, 3, 2, 4], [0, 1, 1, -1]]), np.array([0, 0])
    found = {sends: copies_between_nodes(sends, devices, sources, SHAPE).tolist() for sends in ("nodes", "devices", "pairs", "everything")}
    assert found == {"nodes": [2, 0], "devices": [3, 0], "pairs": [4, 0], "everything": [2, 2]}


@given(cases())
def test_it_is_what_evaluation_counts(case):
    placement, trace = case[:2]
    found = evaluate(placement, trace)
    arrived = arrivals(placement, trace, Serving())
    for backend, sends in SENDS.items():
        rows = [
            copies_between_nodes(sends, devices, arrived.source, placement.topology)
            for devices in route(placement, trace, arrived, placement.topology)
        ]
        chose = trace.topk_ids.max(axis=(1, 2), initial=-1) >= 0
        recorded = [row[chose].mean() if chose.any() else 0.0 for row, kept in zip(rows, found.recorded, strict=True) if kept]
        if recorded:
            assert found.backend_copies(backend) == pytest.approx(np.mean(recorded))


def test_every_backend_that_is_timed_can_be_planned_for():
    assert set(BACKENDS) <= set(SENDS)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UsageError, match="'pplx' is unknown; use one of hierarchical, deepep_high_throughput, flat"):
        sends_of("pplx")


def test_a_plan_for_another_backend_is_named():
    plain = placement_of(SHAPE, [(e,) for e in range(6)])
    assert other_backend(plain, "flat") is None
    plain.provenance["backend"] = "vanilla"
    assert other_backend(plain, "nixl_ep") is None
    assert other_backend(plain, "flat").startswith("planned for vanilla, which sends other things than flat; plan with --backend flat")
    plain.provenance["backend"] = ["flat"]
    assert other_backend(plain, "flat") is None
