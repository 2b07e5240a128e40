"""A probe: what happens from rearrangement to rearrangement: copies counted by the hierarchical dispatch, and what a step takes."""

import time

from grace_moe.engines.vllm import dispatch

_sent, _steps, _deciding, _moving = [], [], [], []


def install():
    from vllm.distributed.eplb import eplb_state
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    state, policy = eplb_state.EplbState, EPLB_POLICIES["default"]
    rearrange, step = state.rearrange, state.step
    decide, move = policy.rebalance_experts, eplb_state.rearrange_expert_weights_inplace

    def windowed(self, is_profile=False, *arguments, **named):
        if not is_profile:
            _sent.append({what: sum(layer[what] for layer in dispatch.sent()) for what in ("tokens", "copies")})
            _deciding.append(0.0)
            _moving.append(0.0)
        return rearrange(self, is_profile, *arguments, **named)

    def stepped(self, is_dummy=False, *arguments, **named):
        step(self, is_dummy, *arguments, **named)
        _steps.append([time.perf_counter(), len(_sent), is_dummy])

    def timed(function, into):
        def call(*arguments, **named):
            began = time.perf_counter()
            result = function(*arguments, **named)
            if into:
                into[-1] += time.perf_counter() - began
            return result

        return call

    state.rearrange, state.step = windowed, stepped
    policy.rebalance_experts = staticmethod(timed(decide, _deciding))
    eplb_state.rearrange_expert_weights_inplace = timed(move, _moving)


def report(worker):
    """By rearrangement: `windows`, `tokens` and `copies` sent until then, all layers; `deciding` and `moving`, seconds. By step: `steps`,
    when it ended, rearrangements until then, and whether the rank had no request."""
    return {"windows": _sent, "steps": _steps, "deciding": _deciding, "moving": _moving}
