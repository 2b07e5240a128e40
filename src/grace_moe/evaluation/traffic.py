"""Bytes that cross nodes: what the runtime's collectives will send, predicted from a replay."""

from __future__ import annotations

from grace_moe.errors import UsageError
from grace_moe.evaluation.replay import Evaluation
from grace_moe.wire import COUNT_BYTES, DISPATCHES, WireFormat


def cross_node_bytes(evaluation: Evaluation, wire: WireFormat, dispatch: str, *, steps: int) -> float:
    """Bytes between nodes for the whole trace, dispatch and combine, all layers.

    - hierarchical: a dispatched row and a combined row per (token, other node), and to each device on
      another node a count for each device there, one for the node and one of all tokens;
    - flat: the same per (token, device on another node), and a count per pair of devices on different nodes;
    - vanilla: a hidden state each way per (token, expert) pair on another node, and counts per expert.

    Args:
        steps: forward passes that the trace's tokens took.

    Raises:
        UsageError: unknown dispatch.
    """
    devices_per_node = evaluation.devices_per_node
    num_devices = sum(devices_per_node)
    layers = len(evaluation.cross_node)
    far_pairs = num_devices**2 - sum(n * n for n in devices_per_node)
    rows = wire.dispatch_row_bytes + wire.hidden_bytes
    if dispatch == "hierarchical":
        counts = sum(n * (num_devices - n) * (n + 2) for n in devices_per_node)
        return float(evaluation.cross_node.sum() * rows + layers * steps * counts * COUNT_BYTES)
    if dispatch == "flat":
        return float(evaluation.flat_cross_node.sum() * rows + layers * steps * far_pairs * COUNT_BYTES)
    if dispatch == "vanilla":
        counts = far_pairs * (evaluation.num_experts // num_devices)
        return float(evaluation.pairs_cross_node.sum() * 2 * wire.hidden_bytes + layers * steps * counts * COUNT_BYTES)
    if dispatch == "auto":
        raise UsageError("dispatch auto goes by the size of each batch; ask for flat or hierarchical")
    raise UsageError(f"dispatch {dispatch!r} is unknown; use one of {', '.join(DISPATCHES)}")


def cross_node_bytes_per_token(evaluation: Evaluation, wire: WireFormat, dispatch: str, *, steps: int) -> float:
    """`cross_node_bytes` over the tokens of the trace; 0 for an empty one."""
    if not evaluation.num_tokens:
        return 0.0
    return cross_node_bytes(evaluation, wire, dispatch, steps=steps) / evaluation.num_tokens
