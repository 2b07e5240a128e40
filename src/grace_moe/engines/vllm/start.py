"""The plan is in place before the first token: every rank reads and loads the experts of its own slots, and vLLM's map says so.

vLLM loads the experts in their own order, and would move them at its first rearrangement. Here an expert of the checkpoint goes to every
slot that the plan gives it, through vLLM's own loader, which takes those of this rank. The seams (vLLM 0.32.0, docs/engines/vllm.md):
`DefaultModelLoader.load_weights`, the `weight_loader` of each parameter of experts, `weight_utils.should_skip_weight`, which is asked
before a tensor is read, and `EplbState.update_mapping`. Other loaders (sharded, tensorised, streamed) start in vLLM's order.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from grace_moe.engines.live.live_plan import LivePlan, switch
from grace_moe.errors import GraceError, MismatchError

if TYPE_CHECKING:
    from torch import nn

STATIC_START = "GRACE_MOE_STATIC_START"
LOG = logging.getLogger("vllm.grace_moe")
Table: TypeAlias = npt.NDArray[np.int64]

_LAYER, _EXPERT = re.compile(r"\blayers\.(\d+)\."), re.compile(r"\.experts\.(\d+)\.")


@dataclass
class PlannedSlots:
    """A model whose experts load by a plan."""

    table: Table
    """`[MoE layers, slots]` expert of each slot."""
    rank: int
    num_ranks: int
    num_experts: int
    loaded: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    """(layer, parameter, slot) -> parts that vLLM's loader took for it, of this rank's slots."""

    @property
    def own(self) -> range:
        """Slots of this rank."""
        per_rank = self.table.shape[1] // self.num_ranks
        return range(self.rank * per_rank, (self.rank + 1) * per_rank)

    def loader(self, plain: Callable[..., bool | None], layer: int, name: str) -> Callable[..., bool | None]:
        """`plain`, vLLM's loader of a parameter of experts, for every slot that the plan gives the expert."""
        slots_of = [np.flatnonzero(self.table[layer] == expert).tolist() for expert in range(self.num_experts)]

        @functools.wraps(plain)
        def load(
            param: Any, loaded_weight: Any, weight_name: str, shard_id: str, expert_id: int, return_success: bool = False
        ) -> bool | None:
            taken = False
            # Beyond the experts come vLLM's redundant slots, which hold some of them a second time: those have been loaded.
            for slot in slots_of[expert_id] if expert_id < self.num_experts else ():
                if plain(param, loaded_weight, weight_name, shard_id, slot, return_success=True):
                    self.loaded[layer, name, slot] += 1
                    taken = True
            return taken if return_success else None

        return load

    def check(self) -> bool:
        """Whether experts came through these loaders at all: a model that loads them in another way starts in vLLM's order.

        Raises:
            MismatchError: some slots of a parameter got less than others, so that the weights are of no map.
        """
        for layer, name in {key[:2] for key in self.loaded}:
            parts = [self.loaded[layer, name, slot] for slot in self.own]
            if min(parts) != max(parts):
                slot = self.own[parts.index(min(parts))]
                raise MismatchError(
                    f"GRACE-MoE: MoE layer {layer}: {name}: slot {slot} got {min(parts)} of {max(parts)} parts of expert "
                    f"{self.table[layer, slot]} from the checkpoint; check it, or set {STATIC_START}=0"
                )
        return bool(self.loaded)


_started: WeakKeyDictionary[Any, Table] = WeakKeyDictionary()
"""Model whose experts were loaded by a plan -> the map."""


def install(live: LivePlan) -> None:
    """Let vLLM's default loader put experts where the plan has them, unless `GRACE_MOE_STATIC_START` is 0.

    Raises:
        UsageError: the switch is neither 0 nor 1.
    """
    if not switch(STATIC_START, "1"):
        return
    try:
        from vllm.distributed.eplb.eplb_state import EplbState
        from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    except ImportError as error:
        _own_start(f"this vLLM has no loader where 0.32 has it ({error})")
        return
    load, add = DefaultModelLoader.load_weights, EplbState.add_model

    def load_weights(self: Any, model: nn.Module, model_config: Any) -> None:
        """See vLLM's method of this name."""
        found = _planned(live, model)
        if found is None:
            load(self, model, model_config)
            return
        experts, slots = found
        with _loading(experts, slots):
            load(self, model, model_config)
        if slots.check():
            _started[experts] = slots.table
        else:
            _own_start("this model loads its experts without vLLM's loader of their parameters")

    def add_model(self: Any, model: Any, model_config: Any, *arguments: Any, **named: Any) -> None:
        """See vLLM's method of this name; then the map is the one that was loaded."""
        import torch

        add(self, model, model_config, *arguments, **named)
        if model in _started:
            self.update_mapping(model_config, torch.from_numpy(_started[model]))
            LOG.info("GRACE-MoE: experts were loaded by %s (%s): the plan is in place", live.path, live.digest)

    DefaultModelLoader.load_weights = load_weights
    EplbState.add_model = add_model


def _planned(live: LivePlan, model: nn.Module) -> tuple[Any, PlannedSlots] | None:
    """The part of a model that holds experts, and its slots by the plan; None, and a line of the log, where it can't start so."""
    from vllm.config import get_current_vllm_config
    from vllm.distributed.parallel_state import get_ep_group, get_node_count
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    config, experts = get_current_vllm_config().parallel_config, get_mixture_of_experts_model(model)
    if not config.enable_eplb or experts is None:
        return None  # the balancer's own part of the plug-in tells it
    reason = _why_not(config, experts)
    if reason:
        _own_start(reason)
        return None
    ranks, nodes = get_ep_group(), get_node_count()
    loads = np.zeros((experts.num_moe_layers, experts.num_logical_experts), dtype=np.int64)
    nodes = nodes if ranks.world_size % nodes == 0 else 1  # as `EplbState.rearrange` has it
    try:
        found = live.map_for(loads, experts.num_physical_experts, ranks.world_size, nodes)
    except GraceError as error:
        LOG.warning("GRACE-MoE: %s. Experts load in vLLM's own order, and its own balancer decides.", error)
        return None
    table = found.slots.physical_to_logical.astype(np.int64)
    return experts, PlannedSlots(table=table, rank=ranks.rank_in_group, num_ranks=ranks.world_size, num_experts=experts.num_logical_experts)


def _why_not(config: Any, experts: Any) -> str:
    """Why vLLM fills this model's slots in a way that no plan can steer; "" = it doesn't."""
    if config.enable_elastic_ep:
        return "with elastic expert parallelism, slots come and go"
    for layer in experts.moe_layers:
        routed = getattr(layer, "routed_experts", None)
        if routed is None or not hasattr(routed, "expert_map_manager"):
            return "this vLLM keeps its experts in another way than 0.32"
        if routed.expert_map_manager.num_fused_shared_experts:
            return "shared experts are fused with the routed ones"
        if getattr(routed.quant_method, "uses_meta_device", False):
            return "weights are quantised while they load"
        if routed.quant_config is not None and routed.quant_config.get_name() == "gpt_oss_mxfp4":
            return "this quantisation loads all experts at once"
    return ""


def _own_start(reason: str) -> None:
    LOG.warning("GRACE-MoE: experts load in vLLM's own order, and its first rearrangement moves them to the plan: %s", reason)


@contextmanager
def _loading(experts: Any, slots: PlannedSlots) -> Iterator[None]:
    """Within, parameters of experts load by the plan, and weights of experts that this rank doesn't hold are not read."""
    from vllm.model_executor.model_loader import weight_utils

    skip, loaders = weight_utils.should_skip_weight, []
    held: dict[int, set[int]] = {}
    for layer, module in enumerate(experts.moe_layers):
        routed = module.routed_experts
        number = _LAYER.search(f"{routed.layer_name}.")
        if number is not None:
            held[int(number[1])] = set(slots.table[layer, slots.own.start : slots.own.stop].tolist())
        for name, param in routed.named_parameters():
            if hasattr(param, "weight_loader"):
                loaders.append((param, param.weight_loader))
                param.weight_loader = slots.loader(param.weight_loader, layer, name)
    weight_utils.should_skip_weight = functools.partial(_skips, skip, held)
    try:
        yield
    finally:
        weight_utils.should_skip_weight = skip
        for param, loader in loaders:
            param.weight_loader = loader


def _skips(plain: Callable[[str, Any], bool], held: dict[int, set[int]], weight_name: str, local_expert_ids: Any) -> bool:
    """Whether a tensor of the checkpoint is not read, by vLLM's own rule or because its expert is in no slot of this rank. Scales are
    small, and some kernels want all of them: vLLM skips none either."""
    if plain(weight_name, local_expert_ids):
        return True
    layer, expert = _LAYER.search(weight_name), _EXPERT.search(weight_name)
    if layer is None or expert is None or int(layer[1]) not in held or not weight_name.endswith((".weight", ".weight_packed")):
        return False
    return int(expert[1]) not in held[int(layer[1])]
