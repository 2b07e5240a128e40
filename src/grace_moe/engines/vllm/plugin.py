"""Plug-in of vLLM (entry point `vllm.general_plugins`): its expert balancer follows a plan. Without `GRACE_MOE_PLAN` it does nothing.

vLLM 0.32 and 0.33 know one policy, "default", and read no initial map from a file. So the plug-in stands in for the default policy. That
stays the fallback where the plan does not fit: another model (a draft model has its own layers), or other ranks.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.live_plan import LiveMap, LivePlan, follows, plan_from_environment, told
from grace_moe.engines.replica_turns import choices_of_rank
from grace_moe.engines.slot_map import keep_slots
from grace_moe.engines.vllm import dispatch, start
from grace_moe.errors import GraceError

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("vllm.grace_moe")  # below vLLM's logger, so that its handlers print it
TURNS = 64
"""Entries of a rank's replica table for an expert with several replicas; vLLM's has room for 1024."""
OWN_TOKENS = (
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "mori_high_throughput",
    "mori_low_latency",
    "nixl_ep",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
)
"""`all2all_backend`s with which each rank routes its own tokens and no others, so that ranks may choose replicas differently."""

_lately: dict[bytes, tuple[LiveMap, int]] = {}
"""Row of a map that was given to vLLM -> the map that it came from, and the layer's index."""
_config: list[Any] = []
"""The parallel configuration of the balancer in this process, once there is one."""


def register() -> None:
    """Stand in for vLLM's default policy, where the environment names a plan. Idempotent.

    Raises:
        GraceError: the plan can't be read.
    """
    live = plan_from_environment()
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
    EPLB_POLICIES["default"] = planned_policy(default, live)
    if live.local_routing:
        _choose_near_replicas(eplb_state)
    start.install(live, _remember)
    LOG.info(follows(live))


def planned_policy(default: Any, live: LivePlan) -> Any:
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

            try:
                found = live.map_for(weight.cpu().numpy().astype(np.int64), num_replicas, num_ranks, num_nodes)
            except GraceError as error:
                LOG.warning(told(error))
                theirs: torch.Tensor = super().rebalance_experts(
                    weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
                )
                return theirs
            table = found.slots.physical_to_logical
            if old_global_expert_indices is not None:
                table = keep_slots(table, old_global_expert_indices.cpu().numpy().astype(np.int32), num_ranks)
            given = np.ascontiguousarray(table, dtype=np.int64)
            _remember(found, given)
            return torch.from_numpy(given)

    return PlannedPolicy


def _remember(found: LiveMap, table: npt.NDArray[np.int64]) -> None:
    """Note which layers of which map the rows of `table` are, so that `near_maps` knows them when vLLM asks for their replicas."""
    _lately.clear()
    for layer, row in reversed(list(enumerate(table))):
        _lately[row.tobytes()] = (found, layer)


def _choose_near_replicas(eplb_state: Any) -> None:
    """Let each rank's replica table name the nearest replicas only, as often as their weights say."""
    plain: Callable[..., tuple[torch.Tensor, torch.Tensor]] = eplb_state.compute_logical_maps
    make = eplb_state.EplbState.__init__

    def remember(self: Any, parallel_config: Any, *arguments: Any, **named: Any) -> None:
        make(self, parallel_config, *arguments, **named)
        _config[:] = [parallel_config]
        if not routes_own_tokens(parallel_config):
            LOG.warning(
                "GRACE-MoE: GRACE_MOE_LOCAL_ROUTING has no effect with all2all_backend %s and data parallelism of %s: ranks may choose "
                "replicas apart only where each routes its own tokens (%s, with data parallelism)",
                parallel_config.all2all_backend,
                parallel_config.data_parallel_size,
                ", ".join(OWN_TOKENS),
            )

    def compute_logical_maps(physical_to_logical_map: torch.Tensor, num_logical_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See vLLM's function of this name; entries of `[..., experts, replicas]` repeat by weight."""
        maps = plain(physical_to_logical_map, num_logical_experts)
        if not _config or not routes_own_tokens(_config[0]):
            return maps
        from vllm.distributed.parallel_state import get_ep_group

        return near_maps(physical_to_logical_map, get_ep_group().rank_in_group, maps)

    eplb_state.EplbState.__init__ = remember
    eplb_state.compute_logical_maps = compute_logical_maps


def routes_own_tokens(parallel_config: Any) -> bool:
    """Whether each rank routes its own tokens alone, so that a choice of replicas by rank computes every pair exactly once."""
    sharded = parallel_config.tensor_parallel_size == 1 or parallel_config.use_sequence_parallel_moe
    context = getattr(parallel_config, "prefill_context_parallel_size", 1) == 1
    apart = parallel_config.all2all_backend in OWN_TOKENS or dispatch.hierarchical()
    return bool(parallel_config.data_parallel_size > 1 and sharded and context and apart)


def near_maps(
    physical_to_logical_map: torch.Tensor, rank: int, maps: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The replica tables of one rank: `[..., experts, turns]` slots, -1 beyond `[..., experts]` turns.

    Layers whose row is not of the plan in use keep vLLM's own tables, `maps`.
    """
    import torch

    whole, counts = maps
    rows = physical_to_logical_map.cpu().numpy().astype(np.int64)
    single = rows.ndim == 1
    if single:
        rows, whole, counts = rows[None], whole[None], counts[None]
    turns_of_layer = [_turns_of(row, rank) for row in rows]
    if all(turns is None for turns in turns_of_layer):
        return maps
    near = [
        turns if turns is not None else [entries[:count].tolist() for entries, count in zip(whole[i], counts[i].tolist(), strict=True)]
        for i, turns in enumerate(turns_of_layer)
    ]
    width = max(len(slots) for layer in near for slots in layer)
    table = torch.full((len(near), len(near[0]), width), -1, dtype=whole.dtype)
    number = torch.zeros_like(counts)
    for index, layer in enumerate(near):
        for expert, slots in enumerate(layer):
            table[index, expert, : len(slots)] = torch.tensor(slots, dtype=whole.dtype)
            number[index, expert] = len(slots)
    return (table[0], number[0]) if single else (table, number)


def _turns_of(row: Any, rank: int) -> list[list[int]] | None:
    found = _lately.get(np.ascontiguousarray(row).tobytes())
    if found is None:
        return None
    live, layer = found
    return choices_of_rank(live.placement.layers[layer], row, live.placement.topology, rank, TURNS)
