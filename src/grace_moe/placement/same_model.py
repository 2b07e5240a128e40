"""Whether a trace is of the model that a placement is for."""

from __future__ import annotations

from grace_moe.errors import MismatchError
from grace_moe.placement.model import Placement
from grace_moe.trace import LoadProfile, RoutingTrace


def check_same_model(planned: Placement | RoutingTrace, trace: RoutingTrace | LoadProfile) -> None:
    """Raise MismatchError unless `trace` has the experts and layers of what was planned, or is to be planned on."""
    if planned.num_experts != trace.num_experts:
        raise MismatchError(
            f"{planned.source}: num_experts: {planned.num_experts}, but {trace.source} has {trace.num_experts}; "
            "use a trace of the model that was planned for"
        )
    if planned.layer_ids != trace.layer_ids:
        raise MismatchError(
            f"{planned.source}: layers: {len(planned.layer_ids)} with ids {list(planned.layer_ids)[:4]}..., but {trace.source} has "
            f"{trace.num_layers} with ids {list(trace.layer_ids)[:4]}...; use a trace of the model that was planned for"
        )
