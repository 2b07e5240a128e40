"""Bytes between nodes, predicted from a replay's counts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from grace_moe.cost.transport import DISPATCHES
from grace_moe.cost.wire import WireFormat
from grace_moe.errors import UsageError
from grace_moe.evaluation import Evaluation, cross_node_bytes, cross_node_bytes_per_token, passes_of_tokens
from grace_moe.evaluation.metrics import Copies, PassCopies
from grace_moe.trace import RoutingTrace

WIRE = WireFormat(hidden_size=32, itemsize=4, top_k=4)


def evaluation_of(*, layers=1, devices_per_node=(2, 2), tokens=10, **copies) -> Evaluation:
    """An evaluation of these copies (the same in every layer); what isn't given is 0."""
    names = ("cross_node", "intra_node", "flat", "flat_cross_node", "pairs", "pairs_cross_node")
    devices = sum(devices_per_node)
    return Evaluation(
        num_tokens=tokens,
        num_experts=16,
        devices_per_node=devices_per_node,
        slots=np.full((layers, devices), 4),
        copies=Copies(**{name: np.full(layers, copies.get(name, 0), dtype=np.int64) for name in names}),
        cross_node_links=(sparse.csr_array((devices, len(devices_per_node)), dtype=np.int64),) * layers,
        intra_node_links=(sparse.csr_array((devices, max(devices_per_node)), dtype=np.int64),) * layers,
        device_load=np.ones((layers, devices)),
    )


@pytest.mark.parametrize(
    ("dispatch", "copies", "want"),
    [
        # rows there (152) and back (128), and per step and layer counts of 8 bytes: 4 devices x 2 on the other node x (2 devices there + the node + all tokens)
        ("hierarchical", {"cross_node": 7}, 2 * (7 * 280 + 3 * 32 * 8)),
        # counts between devices on different nodes: 4 x 2
        ("flat", {"flat_cross_node": 7}, 2 * (7 * 280 + 3 * 8 * 8)),
        # hidden states there and back; counts of each of a peer's 16 / 4 experts
        ("vanilla", {"pairs_cross_node": 7}, 2 * (7 * 256 + 3 * 8 * 4 * 8)),
    ],
)
def test_cross_node_bytes_by_hand(dispatch, copies, want):
    """2x2, two layers, seven copies in each, three steps."""
    others = {"cross_node": 1000, "flat_cross_node": 1000, "pairs_cross_node": 1000, "intra_node": 1000}
    assert cross_node_bytes(evaluation_of(layers=2, **others | copies), WIRE, dispatch, steps=3) == want


BY_PASS = PassCopies(cross_node=np.array([[4, 2, 1]] * 2), flat_cross_node=np.array([[6, 3, 2]] * 2))


def test_auto_goes_by_the_rows_of_each_pass():
    """128 bytes a row: 1024 rows over four ranks are the 32 KiB a rank up to which a pass is flat, one more is not. So 4 + 3 + 2 copies
    a layer, and hierarchical's counts in each of the three passes."""
    evaluation = replace(evaluation_of(layers=2), by_pass=BY_PASS)
    assert cross_node_bytes(evaluation, WIRE, "auto", steps=3, pass_rows=(1025, 1024, 4)) == 2 * (9 * 280 + 3 * 32 * 8)
    assert cross_node_bytes_per_token(evaluation, WIRE, "auto", steps=3, pass_rows=(1025, 1024, 4)) == 2 * (9 * 280 + 3 * 32 * 8) / 10
    # A last pass without a token of the trace still exchanges counts.
    assert cross_node_bytes(evaluation, WIRE, "auto", steps=4, pass_rows=(1025, 1024, 4, 4)) == 2 * (9 * 280 + 4 * 32 * 8)


def test_auto_needs_its_passes():
    evaluation = replace(evaluation_of(layers=2), by_pass=BY_PASS)
    with pytest.raises(UsageError, match="auto goes by the rows of each forward pass; evaluate with passes, and give pass_rows"):
        cross_node_bytes(evaluation, WIRE, "auto", steps=3)
    with pytest.raises(UsageError, match="auto goes by the rows of each forward pass"):
        cross_node_bytes(evaluation_of(), WIRE, "auto", steps=3, pass_rows=(1, 1, 1))
    with pytest.raises(UsageError, match="pass_rows: 2 for 2 steps and 3 passes counted; give each pass its rows"):
        cross_node_bytes(evaluation, WIRE, "auto", steps=2, pass_rows=(4, 4))


def test_passes_of_tokens_by_hand():
    """Request 7 begins at pass 0, request 5 at pass 3: two tokens of prefill and two of decode each, as recorded in one batch."""
    requests, phase = np.array([7, 7, 5, 5, 7, 5, 7, 5], np.int32), np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8)
    trace = RoutingTrace(topk_ids=np.zeros((8, 1, 1), np.int16), num_experts=1, layer_ids=(0,), request_ids=requests, phase=phase)
    assert passes_of_tokens(trace, (0, 3)).tolist() == [0, 0, 3, 3, 1, 4, 2, 5]
    assert passes_of_tokens(replace(trace, phase=None), (0, 3)).tolist() == [0, 0, 3, 3, 0, 3, 0, 3]
    with pytest.raises(UsageError, match="first_pass: 1 requests, but trace has 2; give one each"):
        passes_of_tokens(trace, (0,))


def test_one_node_has_nothing_to_send_across():
    for dispatch in set(DISPATCHES) - {"auto"}:
        assert cross_node_bytes(evaluation_of(devices_per_node=(4,), intra_node=9), WIRE, dispatch, steps=5) == 0


def test_bytes_per_token():
    evaluation = evaluation_of(tokens=10, cross_node=7)
    assert cross_node_bytes_per_token(evaluation, WIRE, "hierarchical", steps=3) == (7 * 280 + 3 * 32 * 8) / 10
    assert cross_node_bytes_per_token(evaluation_of(tokens=0), WIRE, "hierarchical", steps=3) == 0
