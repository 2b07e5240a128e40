"""SGLang: routed experts in the responses of its server (read in sglang 0.5.23). They have a row for every decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.recordings.responses import base64_bytes
from grace_moe.errors import TraceError


def import_responses(objects: list[tuple[str, dict[str, Any]]], paths: Sequence[Path], hints: Hints) -> Imported:
    """Responses with `routed_experts`, in `meta_info` or SGLang's extension of OpenAI's.

    Raises:
        TraceError: no response has any, or not of the model's layers and k.
        UsageError: the model's layers, k or experts are unknown.
    """
    why = "SGLang's routed experts come without their shape"
    layers, k = hints.need("num_hidden_layers", why), hints.need("top_k", why)
    experts = hints.need("num_experts", "the responses don't say how many experts there are")
    requests = []
    for where, value in objects:
        for info in _infos(value):
            data = base64_bytes(info.get("routed_experts"), where, "routed_experts")
            if len(data) % (4 * layers * k) or not data:
                raise TraceError(
                    where,
                    "routed_experts",
                    f"{len(data)} bytes are not int32 [tokens, {layers} layers, {k}]",
                    "check the model's layers and k",
                )
            ids = np.frombuffer(data, dtype="<i4").reshape(-1, layers, k)
            prompt = info.get("prompt_tokens")
            requests.append(RoutedRequest(topk_ids=ids, prompt_tokens=prompt if type(prompt) is int else None))
    if not requests:
        raise TraceError(
            str(paths[0]),
            "routed_experts",
            "in no response",
            "start with --enable-return-routed-experts and ask with return_routed_experts",
        )
    return trace_of_requests(requests, hints, num_experts=experts, source=str(paths[0]))


def _infos(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in a response that hold `routed_experts`: the native API's, or the OpenAI one's extension."""
    usage = value.get("usage")
    prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    choices = value.get("choices")
    places = [value.get("meta_info"), value.get("sglext")]
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict):
            places += [choice.get("meta_info"), choice.get("sglext")]
    return [{"prompt_tokens": prompt, **p} for p in places if isinstance(p, dict) and p.get("routed_experts") is not None]
