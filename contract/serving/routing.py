"""A probe: the experts that each MoE layer's router chose, token by token, from the first request on."""

import torch

_chosen = []
"""By layer, `[tokens, k]` of each forward pass."""


def install():
    """Nothing: routers exist once vLLM has started."""


def started(worker):
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    for layer in get_mixture_of_experts_model(worker.model_runner.model).moe_layers:
        _chosen.append([])
        layer.router.set_capture_fn(lambda ids, seen=_chosen[-1]: seen.append(ids.clone()))


def report(worker):
    """`experts`: `[layers, tokens, k]`, in the order in which they were computed."""
    return {"experts": [torch.cat(passes).tolist() for passes in _chosen]}
