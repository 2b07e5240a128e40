"""Plug-in of SGLang (entry point `sglang.srt.plugins`): its online balancer (`--enable-eplb`) follows a plan. Without `GRACE_MOE_PLAN` it
does nothing. A plan that stays as it is needs no plug-in: give it with `--init-expert-location`.

SGLang's balancer names all decoder layers; those without a plan are filled in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from grace_moe.engines.live_plan import LivePlan, follows, plan_from_environment, told
from grace_moe.engines.slot_map import SlotMap, filler_row
from grace_moe.errors import GraceError, MismatchError
from grace_moe.placement import Placement

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("sglang.grace_moe")
TARGET = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"


def register() -> None:
    """Hook the balancer, where the environment names a plan.

    Raises:
        GraceError: the plan can't be read.
    """
    live = plan_from_environment(LOG)
    if live is None:
        return
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError as error:
        LOG.warning("GRACE-MoE: this SGLang has no hook registry where 0.5.23 has it (%s): the plan is not used", error)
        return
    if live.choice not in ("", "theirs"):
        LOG.warning("GRACE-MoE: GRACE_MOE_CHOICE is vLLM's: SGLang takes near replicas with --ep-dispatch-algorithm static")
    HookRegistry.register(TARGET, planned_rebalance(live), HookType.AROUND)
    LOG.info(follows(live))


def planned_rebalance(live: LivePlan) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A hook around SGLang's `rebalance_experts` that gives the plan's maps, and the original's where the plan does not fit."""

    def rebalance_experts(
        original: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        tokens_per_expert: torch.Tensor,
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See SGLang: `[steps, decoder layers, experts]` tokens -> maps `[layers, slots]`, `[layers, experts, X]`, counts."""
        import torch

        loads = tokens_per_expert.sum(dim=0).cpu().numpy().astype(np.int64)
        ranks = num_physical_experts // num_local_physical_experts
        try:
            slots = _whole_model(live, loads, num_physical_experts, ranks, num_nodes)
        except GraceError as error:
            LOG.warning(told(error))
            return original(tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes, algorithm)
        maps = (slots.physical_to_logical, slots.logical_to_physical_map(), slots.logical_replica_count())
        physical, logical, count = (torch.from_numpy(np.ascontiguousarray(m, dtype=np.int64)) for m in maps)
        return physical, logical, count

    return rebalance_experts


def _whole_model(live: LivePlan, loads: Any, num_slots: int, num_ranks: int, num_nodes: int) -> SlotMap:
    """The plan's map with a row for each decoder layer.

    Raises:
        MismatchError: the plan is not a placement, or names layers that the engine doesn't have.
    """
    if not isinstance(live.planned, Placement):
        raise MismatchError(f"{live.path}: a slot map without layer numbers; give the placement that `grace-moe plan` wrote")
    layer_ids = live.planned.layer_ids
    if max(layer_ids) >= len(loads):
        raise MismatchError(f"{live.path}: plans layer {max(layer_ids)}, and SGLang has decoder layers 0..{len(loads) - 1}; plan for that")
    found = live.map_for(loads[list(layer_ids)], num_slots, num_ranks, num_nodes)
    rows = np.array([filler_row(num_slots, loads.shape[1])] * len(loads), dtype=np.int32)
    rows[list(layer_ids)] = found.slots.physical_to_logical
    return SlotMap(
        physical_to_logical=rows,
        layer_ids=tuple(range(len(loads))),
        num_experts=loads.shape[1],
        num_ranks=num_ranks,
        source=str(live.path),
    )
