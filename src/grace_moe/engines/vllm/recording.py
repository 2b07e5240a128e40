"""Recording with vLLM: a model path and prompts in, a trace out, through vLLM's own router.

On a GPU vLLM returns each request's experts itself (`enable_return_routed_experts`). Its CPU build can't, and there the router's capture
function is used, a request at a time, so that every row's request is known.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grace_moe.engines.models.model_config import ModelShape, shape_of_config
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.recordings.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.recordings.tokens import Ids
from grace_moe.errors import ModelError, UsageError
from grace_moe.trace import RecordingSizes, RoutingTrace, prompts_from_text

_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""Set before vLLM is imported, where the user has not: its model must be in this process to be asked; its CPU cache has no need of
half the machine."""


def record_with_vllm(
    model: str,
    texts: Sequence[str],
    sizes: RecordingSizes,
    *,
    name: str,
    dataset: str,
    progress: Callable[[int], None] | None = None,
) -> tuple[RoutingTrace, int]:
    """Generate with vLLM on one device and record which experts its router chooses; prefill and decode are told apart.

    Returns:
        The trace, and the number of requests.

    Raises:
        UsageError: vLLM is not installed, or the text is too short.
        ModelError: the model has no experts that vLLM's routers can be asked for.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UsageError("--engine vllm: vllm is not installed here; install it, or record with Transformers (leave --engine out)")
    for variable, value in _IN_PROCESS.items():
        os.environ.setdefault(variable, value)
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    returned = not current_platform.is_cpu()
    llm = LLM(
        model=model,
        dtype=sizes.dtype,
        max_num_seqs=sizes.batch_size if returned else 1,
        max_model_len=sizes.prompt_tokens + sizes.new_tokens,
        enforce_eager=not returned,
        **({"enable_return_routed_experts": True} if returned else {"enable_prefix_caching": False}),
    )
    prompts = prompts_from_text(texts, llm.get_tokenizer(), tokens_per_prompt=sizes.prompt_tokens, max_prompts=sizes.requests)
    sampling = SamplingParams(max_tokens=sizes.new_tokens, temperature=0.0)
    shape = shape_of_config(llm.llm_engine.model_config.hf_config.to_dict(), model)
    record = _returned if returned else _captured
    routed = record(llm, prompts, sampling, shape, progress)
    hints = Hints.of(shape, model=name, dataset=dataset)
    trace = trace_of_requests(routed, hints, num_experts=shape.num_experts, source=f"recording of {name}").trace
    assert isinstance(trace, RoutingTrace)
    return trace, len(prompts)


def _returned(
    llm: Any, prompts: list[tuple[int, ...]], sampling: Any, shape: ModelShape, progress: Callable[[int], None] | None
) -> list[RoutedRequest]:
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling)
    routed = []
    for output in outputs:
        ids = output.outputs[0].routed_experts
        if ids is None:
            raise ModelError("vLLM returned no routed experts; its docs say which options exclude them")
        routed.append(RoutedRequest(topk_ids=ids, prompt_tokens=len(output.prompt_token_ids)))
        if progress is not None:
            progress(len(output.outputs[0].token_ids))
    return routed


def _captured(
    llm: Any, prompts: list[tuple[int, ...]], sampling: Any, shape: ModelShape, progress: Callable[[int], None] | None
) -> list[RoutedRequest]:
    rows: dict[int, list[Ids]] = {}

    def capture(model: Any) -> None:
        """Ask every router of the model."""
        for module in model.modules():
            router: Any = getattr(module, "router", None)
            layer = getattr(module, "layer_id", None)
            if hasattr(router, "set_capture_fn") and type(layer) is int and (shape.moe_layer_ids is None or layer in shape.moe_layer_ids):
                rows[layer] = []
                router.set_capture_fn(lambda ids, at=rows[layer]: at.append(ids.detach().cpu().numpy().copy()))

    llm.apply_model(capture)
    if not rows or (shape.moe_layer_ids is not None and len(rows) != len(shape.moe_layer_ids)):
        raise ModelError(f"{len(rows)} MoE layers have a router that vLLM lets us ask, not all; record with Transformers instead")
    routed = []
    for prompt in prompts:
        for seen in rows.values():
            seen.clear()
        (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], sampling, use_tqdm=False)
        new = len(output.outputs[0].token_ids)
        tokens = len(prompt) + new - 1  # the last token is not run through the model
        ids = np.full((tokens, shape.num_hidden_layers, shape.top_k), -1, dtype=np.int32)
        for layer, seen in rows.items():
            chosen = np.concatenate(seen)
            if len(chosen) < tokens or chosen.shape[1] != shape.top_k:
                raise ModelError(f"layer {layer}: vLLM's router was asked for {chosen.shape} of {tokens} tokens x {shape.top_k}")
            ids[:, layer] = chosen[:tokens]
        routed.append(RoutedRequest(topk_ids=ids, prompt_tokens=len(prompt)))
        if progress is not None:
            progress(new)
    return routed
