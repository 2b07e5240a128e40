"""What was not recorded is not data: rows without any choice are no tokens."""

from __future__ import annotations

from grace_moe.trace.model import RoutingTrace


def without_unrecorded(trace: RoutingTrace) -> tuple[RoutingTrace, int]:
    """The trace without the rows that chose no expert in any layer (-1 everywhere), and how many were left out.

    Such rows are padding or draft passes of an engine. As tokens they would count as requests that send nothing. A trace that has none
    is given back as it is.
    """
    recorded = trace.topk_ids.max(axis=(1, 2), initial=-1) >= 0
    left_out = int((~recorded).sum())
    return (trace.select(recorded), left_out) if left_out else (trace, 0)
