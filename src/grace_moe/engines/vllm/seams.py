"""Where vLLM's own code is wrapped, so that its router chooses replicas as we do (read in 0.32.0 and 0.33.0).

`base_router.eplb_map_to_physical_and_record` gets all k experts of a rank's tokens; some models import it by name. The layer that calls is
told by the address of its replica table. The tables follow what vLLM commits, whole or layer by layer (asynchronous EPLB).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from grace_moe.engines.live.given_maps import GivenMaps
from grace_moe.engines.live.live_plan import LivePlan, follows, told
from grace_moe.engines.vllm.choice_tables import MAX_NODES
from grace_moe.engines.vllm.model_choice import ModelChoice
from grace_moe.engines.vllm.own_tokens import best_choice, routes_own_tokens, why_not
from grace_moe.engines.vllm.sampled import RouterSample, router_sample, tokens_of_requests
from grace_moe.errors import GraceError
from grace_moe.placement import Placement

LOG = logging.getLogger("vllm.grace_moe")  # below vLLM's logger, so that its handlers print it
RUNNERS = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner")
"""Modules of vLLM's two model runners."""
HOW = {"near": "near by weight", "joint": "for all of a token's experts together"}

_choices: dict[int, tuple[ModelChoice, int]] = {}
"""Address of a layer's replica table -> the choice of its model, and the layer's index."""
_ours: set[Callable[..., Any]] = set()
"""What stands in for functions of vLLM."""


def choose_replicas(eplb_state: Any, live: LivePlan) -> None:
    """Wrap vLLM's balancer, its router and its model runner, for a plan in use. `eplb_state` is vLLM's module of this name."""
    state = eplb_state.EplbState

    def made(make: Callable[..., None], self: Any, parallel_config: Any, *arguments: Any, **named: Any) -> None:
        make(self, parallel_config, *arguments, **named)
        tell_left_out(live)
        if live.choice == "theirs":
            return
        if routes_own_tokens(parallel_config):
            live.two_phases = True
            _wrap_router()
            _wrap_runners()
        else:
            level = logging.WARNING if live.choice else logging.INFO
            LOG.log(level, "GRACE-MoE: vLLM chooses replicas by its own rule, as it has %s", why_not(parallel_config))

    def added(add: Callable[..., None], self: Any, model: Any, model_config: Any, *arguments: Any, **named: Any) -> None:
        add(self, model, model_config, *arguments, **named)
        model_state = self.model_states[model_config.compute_hash()]
        forget(model_state)
        planned = _plan_of(model_state, live)
        if planned is None:
            return
        LOG.info("%s", follows(live, model_state.model_name))
        if live.choice != "theirs" and routes_own_tokens(self.parallel_config):
            chosen = _serve(model_state, planned, live.given, live.choice or best_choice(self.parallel_config))
            if live.replan:
                chosen.sample = router_sample(model_state, model_config, self.parallel_config, chosen.rank)
        if live.replan:
            how = (
                "loads alone, as vLLM's own rule chooses replicas" if sample_of(model_state) is None else "choices of tokens, in its router"
            )
            LOG.info("GRACE-MoE: %s: re-planning decides by %s", model_state.model_name, how)

    def remapped(remap: Callable[..., None], self: Any, model_config: Any, *arguments: Any, **named: Any) -> None:
        remap(self, model_config, *arguments, **named)
        model_state = self.model_states[model_config.compute_hash()]
        _follow(model_state, model_state.physical_to_logical_map)

    def committed(commit: Callable[..., None], model_state: Any, new_physical_to_logical_map: Any) -> None:
        commit(model_state, new_physical_to_logical_map)
        _follow(model_state, new_physical_to_logical_map)

    def layer_committed(commit: Callable[..., None], model_state: Any, new_physical_to_logical_map: Any, layer: int) -> None:
        found = _choice_of(model_state)
        if found is None or not found.has(layer, new_physical_to_logical_map.cpu().numpy()):  # a layer that stays is committed for nothing
            commit(model_state, new_physical_to_logical_map, layer)
        _follow(model_state, new_physical_to_logical_map[None], layer)

    def prepared(prepare: Callable[..., None], self: Any, model_config: Any, num_unpadded_tokens: int, ubatch_slices: Any = None) -> None:
        prepare(self, model_config, num_unpadded_tokens, ubatch_slices)
        found = _choice_of(self.model_states.get(eplb_state.compute_hash_cached(model_config)))
        if found is not None:
            found.begin(num_unpadded_tokens, [part.token_slice.start for part in ubatch_slices] if ubatch_slices else [0])

    for name, ours in (("__init__", made), ("add_model", added), ("update_mapping", remapped), ("prepare_forward", prepared)):
        _around(state, name, ours)
    _around(eplb_state, "_commit_eplb_maps", committed)
    _around(eplb_state, "_commit_eplb_maps_for_layer", layer_committed)


def tell_left_out(live: LivePlan) -> None:
    """Say which models vLLM's balancer leaves out without a word: those whose class is not among its `MixtureOfExperts`. Idempotent."""
    from vllm.model_executor.models import interfaces

    plain, told_of = interfaces.get_mixture_of_experts_model, set[str]()
    if plain in _ours:
        return

    @wraps(plain)
    def found(model: Any) -> Any:
        """See vLLM's function of this name."""
        experts = plain(model)
        name = type(model).__name__
        if experts is None and name not in told_of and any(type(module).__name__ == "RoutedExperts" for module in model.modules()):
            told_of.add(name)
            LOG.warning(
                "GRACE-MoE: vLLM's expert balancer leaves %s out, so nothing follows %s: its class is none of vLLM's MixtureOfExperts; "
                "--model-impl transformers serves many such models with the balancer",
                name,
                live.path,
            )
        return experts

    _ours.add(found)
    everywhere(plain, found)


def forget(model_state: Any) -> None:
    """Leave the replicas of a model to vLLM."""
    for table in model_state.logical_to_physical_map:
        _choices.pop(table.data_ptr(), None)


def decode_alone(scheduler_output: Any) -> bool:
    """Whether a batch is of decode steps alone: every request is past its prompt, and runs the tokens of one step."""
    cached, scheduled = scheduler_output.scheduled_cached_reqs, scheduler_output.num_scheduled_tokens
    drafts = scheduler_output.scheduled_spec_decode_tokens
    return not scheduler_output.scheduled_new_reqs and all(
        outputs > 0 and scheduled.get(request, 1) == 1 + len(drafts.get(request, ()))
        for request, outputs in zip(cached.req_ids, cached.num_output_tokens, strict=True)
    )


def _around(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """Let a function of vLLM be called through ours, which gets it as the first argument."""
    plain = getattr(owner, name)

    @wraps(plain)
    def through(*arguments: Any, **named: Any) -> Any:
        return ours(plain, *arguments, **named)

    setattr(owner, name, through)


def _plan_of(model_state: Any, live: LivePlan) -> Placement | None:
    """The plan with the model's slots; None, and a line of the log, where it doesn't fit."""
    from vllm.distributed.parallel_state import get_ep_group, get_node_count

    loads = np.zeros(model_state.logical_to_physical_map.shape[:2], dtype=np.int64)
    ranks, nodes = get_ep_group().world_size, get_node_count()
    nodes = nodes if ranks % nodes == 0 else 1  # as `EplbState.rearrange` has it
    try:
        return live.map_for(loads, model_state.physical_to_logical_map.shape[1], ranks, nodes).placement
    except GraceError as error:
        LOG.warning(told(error))
        return None


def _serve(model_state: Any, planned: Placement, given: GivenMaps, choice: str) -> ModelChoice:
    """Begin to choose for a model."""
    from vllm.distributed.parallel_state import get_ep_group

    tables = model_state.logical_to_physical_map
    if planned.topology.num_nodes > MAX_NODES:
        choice = "near"
    chosen = ModelChoice(planned, get_ep_group().rank_in_group, choice, given, tables.device)
    for index, table in enumerate(tables):
        _choices[table.data_ptr()] = (chosen, index)
    _follow(model_state, model_state.physical_to_logical_map)
    LOG.info("GRACE-MoE: %s: replicas are chosen %s, in decode by the plan's weights for it", model_state.model_name, HOW[choice])
    return chosen


def sample_of(model_state: Any) -> RouterSample | None:
    """What is sampled of a model's routers; None where they aren't seen."""
    found = _choice_of(model_state)
    return None if found is None else found.sample


def _choice_of(model_state: Any) -> ModelChoice | None:
    found = None if model_state is None else _choices.get(model_state.logical_to_physical_map.data_ptr())
    return None if found is None else found[0]


def _follow(model_state: Any, rows: torch.Tensor, first: int = 0) -> None:
    """Take over rows of the map, of layers from `first` on; leave the model to vLLM where they are for other ranks than were planned."""
    found = _choice_of(model_state)
    if found is None:
        return
    slots = rows.cpu().numpy()
    if slots.shape[1] % found.planned.topology.num_devices or (slots < 0).any() or (found.rows and slots.shape[1] != len(found.rows[0])):
        forget(model_state)
        LOG.warning("GRACE-MoE: the engine has %d slots now, on other ranks: vLLM chooses replicas by its own rule", slots.shape[1])
        return
    found.follow(enumerate(slots, first))


def _wrap_router() -> None:
    """Put our choice in front of vLLM's in every module that has it by name. Idempotent."""
    from vllm.model_executor.layers.fused_moe.router import base_router
    from vllm.v1.worker.ubatching import dbo_current_ubatch_id

    plain = base_router.eplb_map_to_physical_and_record
    if plain in _ours:
        return

    @wraps(plain)
    def choose(
        topk_ids: torch.Tensor,
        expert_load_view: torch.Tensor,
        logical_to_physical_map: torch.Tensor,
        logical_replica_count: torch.Tensor,
        record_enabled: torch.Tensor,
        num_unpadded_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See vLLM's function of this name."""
        found = _choices.get(logical_to_physical_map.data_ptr())
        if found is None:
            theirs: torch.Tensor = plain(
                topk_ids, expert_load_view, logical_to_physical_map, logical_replica_count, record_enabled, num_unpadded_tokens
            )
            return theirs
        chosen, layer = found
        return chosen.slots(layer, topk_ids, dbo_current_ubatch_id(), expert_load_view, record_enabled, num_unpadded_tokens)

    _ours.add(choose)
    everywhere(plain, choose)


def everywhere(plain: Callable[..., Any], ours: Callable[..., Any]) -> None:
    """Put a function in the place of another in all modules that were loaded, which may have imported it by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(plain.__name__) is plain:
            setattr(module, plain.__name__, ours)


def _wrap_runners() -> None:
    """Have the model runners tell decode from prefill. Idempotent."""

    def run(execute: Callable[..., Any], self: Any, scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
        decode = decode_alone(scheduler_output)
        for chosen, _ in _choices.values():
            chosen.decode = decode
        result = execute(self, scheduler_output, *arguments, **named)
        samples = {id(chosen.sample): chosen.sample for chosen, _ in _choices.values() if chosen.sample is not None}
        for sample in samples.values():
            sample.keep(tokens_of_requests(self, scheduler_output))
        return result

    for name in RUNNERS:
        runner = getattr(sys.modules.get(name), "GPUModelRunner", None)
        if runner is not None and runner.execute_model not in _ours:
            _around(runner, "execute_model", run)
            _ours.add(runner.execute_model)
