"""Bytes that cross nodes: what the runtime's collectives will send, predicted from a replay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grace_moe.cost.transport import counts_between_nodes, goes_flat
from grace_moe.cost.wire import COUNT_BYTES, WireFormat
from grace_moe.errors import UsageError
from grace_moe.evaluation.metrics import Evaluation
from grace_moe.evaluation.serving import decode_steps
from grace_moe.trace import RoutingTrace, order_of_requests


def passes_of_tokens(trace: RoutingTrace, first_pass: Sequence[int]) -> npt.NDArray[np.int64]:
    """`[tokens]` number of the forward pass that each token takes: its request's first in prefill, one more for each decode token.

    Args:
        first_pass: `[requests]` of each request, in their order of appearance in the trace.

    Raises:
        UsageError: another number of requests than the trace has.
    """
    request, _ = order_of_requests(trace)
    requests = int(request.max(initial=-1)) + 1
    if len(first_pass) != requests:
        raise UsageError(f"first_pass: {len(first_pass)} requests, but {trace.source} has {requests}; give one each")
    passes: npt.NDArray[np.int64] = np.array(first_pass, dtype=np.int64)[request]
    steps = decode_steps(trace)
    return passes if steps is None else passes + steps + 1


def cross_node_bytes(
    evaluation: Evaluation, wire: WireFormat, dispatch: str, *, steps: int, pass_rows: Sequence[int] | None = None
) -> float:
    """Bytes between nodes for the whole trace, dispatch and combine, all layers: rows, and the row counts told before them.

    - hierarchical: a dispatched row and a combined row per (token, other node);
    - flat: the same per (token, device on another node);
    - vanilla: a hidden state each way per (token, expert) pair on another node;
    - auto: the rows of flat or hierarchical, pass by pass (`transport.goes_flat`).

    Args:
        steps: forward passes that the trace's tokens took.
        pass_rows: `[steps]` rows of each pass over all ranks, padding and idle rows included. `auto` alone needs them, and an
            evaluation that counted copies by pass.

    Raises:
        UsageError: unknown dispatch, or `auto` without its passes.
    """
    counts = counts_between_nodes(dispatch, evaluation.devices_per_node, evaluation.num_experts)
    row_bytes = wire.dispatch_row_bytes + wire.hidden_bytes
    if dispatch == "vanilla":
        copies, row_bytes = int(evaluation.copies.pairs_cross_node.sum()), 2 * wire.hidden_bytes
    elif dispatch == "flat":
        copies = int(evaluation.copies.flat_cross_node.sum())
    elif dispatch == "hierarchical":
        copies = int(evaluation.copies.cross_node.sum())
    else:
        copies = _auto_copies(evaluation, wire, steps, pass_rows)
    layers = len(evaluation.device_load)
    return float(copies * row_bytes + layers * steps * counts * COUNT_BYTES)


def _auto_copies(evaluation: Evaluation, wire: WireFormat, steps: int, pass_rows: Sequence[int] | None) -> int:
    """Copies between nodes in all layers, each pass flat or hierarchical by its rows."""
    if pass_rows is None or evaluation.by_pass is None:
        raise UsageError("dispatch auto goes by the rows of each forward pass; evaluate with passes, and give pass_rows")
    hierarchical, flat = evaluation.by_pass.cross_node, evaluation.by_pass.flat_cross_node
    counted = hierarchical.shape[1]
    if len(pass_rows) != steps or counted > steps:
        raise UsageError(f"pass_rows: {len(pass_rows)} for {steps} steps and {counted} passes counted; give each pass its rows")
    nodes, devices = len(evaluation.devices_per_node), sum(evaluation.devices_per_node)
    tiny = np.array([goes_flat(rows, devices, nodes, wire.hidden_bytes) for rows in pass_rows[:counted]], dtype=bool)
    return int(np.where(tiny, flat, hierarchical).sum())


def cross_node_bytes_per_token(
    evaluation: Evaluation, wire: WireFormat, dispatch: str, *, steps: int, pass_rows: Sequence[int] | None = None
) -> float:
    """`cross_node_bytes` over the tokens of the trace; 0 for an empty one."""
    if not evaluation.num_tokens:
        return 0.0
    return cross_node_bytes(evaluation, wire, dispatch, steps=steps, pass_rows=pass_rows) / evaluation.num_tokens
