"""A probe: the experts that each MoE layer's router chose, token by token, from the first request on. Steps that a rank without
requests goes along with are left out."""

import torch

_chosen = []
"""By layer, `[tokens, k]` of each forward pass."""


def install():
    """Nothing: routers exist once vLLM has started."""


def started(worker):
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    def note(seen):
        def capture(ids):
            if get_forward_context().attn_metadata:
                seen.append(ids.clone())

        return capture

    for layer in get_mixture_of_experts_model(worker.model_runner.model).moe_layers:
        _chosen.append([])
        layer.router.set_capture_fn(note(_chosen[-1]))


def report(worker):
    """`experts`: `[layers, tokens, k]`, in the order in which they were computed; `passes`: tokens of each forward pass."""
    return {"experts": [torch.cat(seen).tolist() for seen in _chosen], "passes": [len(ids) for ids in _chosen[0]]}
