"""Plug-in of SGLang (entry point `sglang.srt.plugins`): its online balancer (`--enable-eplb`) follows a plan, and replicas are chosen by it
(`sglang.choice`). Without `GRACE_MOE_PLAN` it does nothing. To place a plan that stays as it is, `--init-expert-location` is enough.

SGLang's balancer names all decoder layers; those without a plan are filled in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from grace_moe.engines.live.live_plan import LivePlan, follows, plan_from_environment, told
from grace_moe.engines.sglang.choice import Choosing
from grace_moe.engines.slot_map import SlotMap, filler_row
from grace_moe.errors import GraceError, MismatchError
from grace_moe.placement import Placement

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("sglang.grace_moe")
BALANCER = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"
SURVIVORS = "sglang.srt.eplb.eplb_algorithms.elasticity_aware.rebalance_experts"
"""What elastic expert parallelism has the balancer call, with the ranks that are alive."""
Maps: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
"""`[layers, slots]` expert of each slot, `[layers, experts, X]` slots of each expert, -1 beyond `[layers, experts]` of them."""


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
    choosing = _choosing(live)
    HookRegistry.register(BALANCER, planned_rebalance(live), HookType.AROUND)
    HookRegistry.register(SURVIVORS, planned_survivors(live, choosing), HookType.AROUND)
    for target, kind, hook in () if choosing is None else choosing.hooks():
        HookRegistry.register(target, hook, HookType[kind])
    LOG.info(follows(live))
    if live.replan:
        LOG.info("GRACE-MoE: re-planning decides by loads alone: SGLang's balancer is told no more")


def _choosing(live: LivePlan) -> Choosing | None:
    """Our replica choice, near where none is named: its table costs nothing. None where it is to be SGLang's."""
    if live.choice == "theirs":
        return None
    if not isinstance(live.planned, Placement):
        LOG.warning("GRACE-MoE: SGLang chooses replicas: %s is a slot map without layer numbers", live.path)
        return None
    return Choosing(planned=live.planned, choice=live.choice or "near")


def planned_rebalance(live: LivePlan) -> Callable[..., Maps]:
    """A hook around SGLang's `rebalance_experts` that gives the plan's maps, and the original's where the plan does not fit."""

    def rebalance_experts(
        original: Callable[..., Maps],
        tokens_per_expert: torch.Tensor,
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: Any,
    ) -> Maps:
        """See SGLang: `[steps, decoder layers, experts]` tokens -> maps `[layers, slots]`, `[layers, experts, X]`, counts."""
        arguments = (tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes, algorithm)
        if "elasticity_aware" in str(algorithm):  # it knows which ranks live, and `planned_survivors` is around what it calls
            return original(*arguments)
        ranks = num_physical_experts // num_local_physical_experts
        try:
            return _maps(live, tokens_per_expert.sum(dim=0), num_physical_experts, ranks, num_nodes)
        except GraceError as error:
            LOG.warning(told(error))
            return original(*arguments)

    return rebalance_experts


def planned_survivors(live: LivePlan, choosing: Choosing | None = None) -> Callable[..., Maps]:
    """A hook around the balancer of SGLang's elastic mode: the plan without the ranks that are dead, and the original's maps where too
    few are left to hold every expert."""

    def rebalance_experts(
        original: Callable[..., Maps],
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int | None,
        num_nodes: int,
        num_gpus: int,
        enable_hierarchical: bool,
        active_ranks: torch.Tensor,
    ) -> Maps:
        """See SGLang's `elasticity_aware`: `[decoder layers, experts]` tokens, `[ranks]` 1 = alive."""
        alive = active_ranks.tolist()[:num_gpus]  # what follows is room for ranks that may join
        dead = tuple(rank for rank in range(num_gpus) if rank >= len(alive) or not alive[rank])
        if choosing is not None:
            choosing.dead = dead
        try:
            maps = _maps(live, weight, num_replicas, num_gpus, num_nodes, dead)
        except GraceError as error:
            LOG.warning(told(error))
            return original(weight, num_replicas, num_groups, num_nodes, num_gpus, enable_hierarchical, active_ranks)
        if dead:
            LOG.warning("GRACE-MoE: the plan is followed without the ranks that are dead: %s", ", ".join(map(str, dead)))
        return maps

    return rebalance_experts


def _maps(live: LivePlan, tokens: torch.Tensor, num_slots: int, num_ranks: int, num_nodes: int, dead: tuple[int, ...] = ()) -> Maps:
    """SGLang's three maps, with a row for each decoder layer. Slots of dead ranks name expert 0, as SGLang's own do, and no expert's
    slots name them.

    Raises:
        GraceError: the plan does not fit.
    """
    import torch

    loads = tokens.cpu().numpy().astype(np.int64)
    slots = _whole_model(live, loads, num_slots, num_ranks, num_nodes, dead)
    per_rank = num_slots // num_ranks
    living = np.flatnonzero(~np.isin(np.arange(num_slots) // per_rank, dead))  # slot among the living -> slot
    physical = np.zeros((len(loads), num_slots), dtype=np.int64)
    physical[:, living] = slots.physical_to_logical
    among = slots.logical_to_physical_map()
    logical = np.where(among < 0, -1, living[among])
    return torch.from_numpy(physical), torch.from_numpy(logical), torch.from_numpy(slots.logical_replica_count().astype(np.int64))


def _whole_model(live: LivePlan, loads: Any, num_slots: int, num_ranks: int, num_nodes: int, dead: tuple[int, ...]) -> SlotMap:
    """The plan's map of the ranks that live, with a row for each decoder layer.

    Raises:
        MismatchError: the plan is not a placement, or names layers that the engine doesn't have.
        GraceError: it does not fit otherwise.
    """
    if not isinstance(live.planned, Placement):
        raise MismatchError(f"{live.path}: a slot map without layer numbers; give the placement that `grace-moe plan` wrote")
    layer_ids = live.planned.layer_ids
    if max(layer_ids) >= len(loads):
        raise MismatchError(f"{live.path}: plans layer {max(layer_ids)}, and SGLang has decoder layers 0..{len(loads) - 1}; plan for that")
    found = live.map_for(loads[list(layer_ids)], num_slots, num_ranks, num_nodes, dead=dead)
    rows = np.array([filler_row(found.slots.num_slots, loads.shape[1])] * len(loads), dtype=np.int32)
    rows[list(layer_ids)] = found.slots.physical_to_logical
    return SlotMap(
        physical_to_logical=rows,
        layer_ids=tuple(range(len(loads))),
        num_experts=loads.shape[1],
        num_ranks=found.slots.num_ranks,
        source=str(live.path),
    )
