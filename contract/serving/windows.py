"""A probe: what happens from rearrangement to rearrangement: copies counted by the hierarchical dispatch, what a step takes, what moves."""

import time

import torch

from grace_moe.engines.vllm import dispatch

_sent, _steps, _deciding, _moving = [], [], [], []
_switched, _asked = [0], [False]


def install():
    from vllm.distributed.eplb import eplb_state
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    state, policy = eplb_state.EplbState, EPLB_POLICIES["default"]
    rearrange, step = state.rearrange, state.step
    decide, move = policy.rebalance_experts, eplb_state.rearrange_expert_weights_inplace
    commit = eplb_state._commit_eplb_maps_for_layer

    def windowed(self, is_profile=False, *arguments, **named):
        if not is_profile:
            _sent.append({what: sum(layer[what] for layer in dispatch.sent()) for what in ("tokens", "copies")})
            _deciding.append(0.0)
            _moving.append(0.0)
        return rearrange(self, is_profile, *arguments, **named)

    def stepped(self, is_dummy=False, *arguments, **named):
        asked = _asked[0]
        under_way = any(model.rebalanced for model in self.model_states.values())
        step(self, is_dummy, *arguments, **named)
        under_way |= any(model.rebalanced for model in self.model_states.values())
        _steps.append(
            {
                "ended": time.perf_counter(),
                "windows": len(_sent),
                "under_way": under_way,
                "asked": asked or _asked[0],
                "switched": _switched[0],
            }
        )

    def committed(model_state, new_physical_to_logical_map, layer):
        _switched[0] += int((model_state.physical_to_logical_map[layer] != torch.as_tensor(new_physical_to_logical_map)).sum())
        commit(model_state, new_physical_to_logical_map, layer)

    def asked_for(*arguments, **named):
        _asked[0] = True
        try:
            return decide(*arguments, **named)
        finally:
            _asked[0] = False

    def timed(function, into):
        def call(*arguments, **named):
            began = time.perf_counter()
            result = function(*arguments, **named)
            if into:
                into[-1] += time.perf_counter() - began
            return result

        return call

    state.rearrange, state.step = windowed, stepped
    policy.rebalance_experts = staticmethod(timed(asked_for, _deciding))
    eplb_state.rearrange_expert_weights_inplace = timed(move, _moving)
    eplb_state._commit_eplb_maps_for_layer = committed


def report(worker):
    """By rearrangement: `windows`, `tokens` and `copies` sent until then, all layers; `deciding` and `moving`, seconds. By step: `steps`,
    when it ended, rearrangements until then, whether one went on beside it and whether its map was still asked for, and how many slots
    have changed their expert beside steps until then."""
    return {"windows": _sent, "steps": _steps, "deciding": _deciding, "moving": _moving}
