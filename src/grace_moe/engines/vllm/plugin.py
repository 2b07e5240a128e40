"""Plug-in of vLLM (entry point `vllm.general_plugins`): its expert balancer follows a plan. Without `GRACE_MOE_PLAN` it does nothing.

vLLM 0.32 and 0.33 know one policy, "default", and read no initial map from a file. So the plug-in stands in for the default policy. That
stays the fallback where the plan does not fit: another model (a draft model has its own layers), or other ranks.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from grace_moe.engines.live.live_plan import LivePlan, follows, plan_from_environment, told
from grace_moe.engines.live.replanner import Serving
from grace_moe.engines.slot_map import keep_slots
from grace_moe.engines.vllm import dispatch, start
from grace_moe.engines.vllm.applied import Applied
from grace_moe.engines.vllm.deciding_rank import DecidingRank
from grace_moe.engines.vllm.measured import count_by_slot, measured
from grace_moe.engines.vllm.seams import LOG, choose_replicas
from grace_moe.errors import GraceError

if TYPE_CHECKING:
    import torch


def register() -> None:
    """Stand in for vLLM's default policy, where the environment names a plan. Idempotent.

    Raises:
        GraceError: the plan can't be read.
    """
    live = plan_from_environment(LOG)
    if dispatch.hierarchical():
        dispatch.install(live)
    if live is None:
        return
    try:
        from vllm.distributed.eplb import eplb_state
        from vllm.distributed.eplb.policy import EPLB_POLICIES
    except ImportError as error:
        LOG.warning("GRACE-MoE: this vLLM has no expert balancer where 0.32 has it (%s): the plan is not used", error)
        return
    default = EPLB_POLICIES["default"]
    if getattr(default, "follows_a_plan", False):
        return
    expected = ["weight", "num_replicas", "num_groups", "num_nodes", "num_ranks", "old_global_expert_indices"]
    if list(inspect.signature(default.rebalance_experts).parameters) != expected:
        LOG.warning("GRACE-MoE: this vLLM's balancing policy takes other arguments than 0.32's: the plan is not used")
        return
    applied = eplb_state.current_platform = Applied(eplb_state.current_platform)
    EPLB_POLICIES["default"] = planned_policy(default, live, applied)
    choose_replicas(eplb_state, live)
    if live.replan:
        live.replanner.policy = DecidingRank()
        count_by_slot(eplb_state)
    start.install(live)
    LOG.info(follows(live))


def planned_policy(default: Any, live: LivePlan, applied: Applied) -> Any:
    """A policy class that gives the plan's map, and `default`'s where the plan does not fit."""

    class PlannedPolicy(default):
        """vLLM's policy, with a plan."""

        follows_a_plan = True

        @classmethod
        def rebalance_experts(
            cls,
            weight: torch.Tensor,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: torch.Tensor | None = None,
        ) -> torch.Tensor:
            """`[layers, slots]` expert of each slot; see vLLM's `AbstractEplbPolicy`."""
            import torch

            loads = weight.cpu().numpy().astype(np.int64)
            rows = None if old_global_expert_indices is None else old_global_expert_indices.cpu().numpy()
            serving = Serving(loads=loads, rows=rows, measured=None if rows is None else measured(loads, rows))
            try:
                found = live.map_for(loads, num_replicas, num_ranks, num_nodes, serving=serving)
            except GraceError as error:
                LOG.warning(told(error))
                applied.ours = False
                theirs: torch.Tensor = super().rebalance_experts(
                    weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
                )
                return theirs
            applied.ours = True
            table = found.slots.physical_to_logical
            if rows is not None:
                table = keep_slots(table, rows.astype(np.int32), num_ranks)
            return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int64))

    return PlannedPolicy
