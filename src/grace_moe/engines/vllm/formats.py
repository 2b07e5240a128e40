"""vLLM: routed experts in, a slot map and loads out (read in vllm 0.32.0 and 0.33.0).

vLLM's balancer numbers MoE layers only; its routed experts have a row for every decoder layer, dense ones filled with expert 0.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grace_moe.engines.backends import VLLM, flags_of
from grace_moe.engines.exported import Exported
from grace_moe.engines.recordings.dumps import npy_array, read_npy
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.recordings.responses import base64_bytes, read_objects
from grace_moe.engines.recordings.tokens import Ids
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.slot_tables import slot_map
from grace_moe.engines.vllm.maps import read_map
from grace_moe.errors import MismatchError, PlacementError, TraceError
from grace_moe.files import dump_json, read_json

MAX_REPLICAS = 1024
"""Entries that vLLM's replica table has for an expert (`MAX_EXPERT_REDUNDANCY` + 1)."""
WINDOW, INTERVAL = 256, 1024
"""Steps whose loads vLLM counts, and between two rearrangements, in the command that is printed: a window of one step is noise, and
vLLM rearranges first after a quarter of the interval."""
_WHY = "the routed experts don't say how many experts there are"


def import_routed_experts(paths: Sequence[Path], hints: Hints) -> Imported:
    """Arrays of `CompletionOutput.routed_experts` (`.npy`, `[tokens, decoder layers, k]`, a request each), or the server's responses
    with `choices[i].routed_experts` (`.json`, `.jsonl`).

    Raises:
        TraceError: not such a file, or damaged.
        UsageError: something of the model is unknown and needed.
    """
    experts = hints.need("num_experts", _WHY)
    if paths[0].suffix not in (".json", ".jsonl"):
        arrays = [RoutedRequest(topk_ids=_three(read_npy(path), str(path))) for path in paths]
        return trace_of_requests(arrays, hints, num_experts=experts, source=str(paths[0]))
    requests = []
    for where, value in read_objects(list(paths)):
        usage, choices = value.get("usage"), value.get("choices")
        choices = choices if isinstance(choices, list) else []
        for index, choice in enumerate(choices):
            text = choice.get("routed_experts") if isinstance(choice, dict) else None
            if text is None:
                continue
            at = f"{where}: choices[{index}]"
            ids = _three(npy_array(base64_bytes(text, at, "routed_experts"), at), at)
            prompt = _prompt_rows(usage, len(ids), alone=len(choices) == 1)
            requests.append(RoutedRequest(topk_ids=ids, prompt_tokens=prompt))
    if not requests:
        raise TraceError(str(paths[0]), "routed_experts", "in no choice", "start vLLM with --enable-return-routed-experts")
    return trace_of_requests(requests, hints, num_experts=experts, source=str(paths[0]))


def _prompt_rows(usage: Any, rows: int, *, alone: bool) -> int | None:
    """Rows of the prompt, of so many that were returned; None where the response doesn't say.

    A request with `routed_experts_prompt_start` gets its prompt from there on. The last token was put out, but never run through the
    model, so a lone choice shows what its prompt lacks.
    """
    prompt, new = (usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens"))
    if type(prompt) is not int:
        return None
    if not alone or type(new) is not int or new < 1:
        return prompt
    return max(0, min(prompt, rows - (new - 1)))


def export_map(slots: SlotMap) -> Exported:
    """A list of MoE layers, each the experts of its slots in order.

    Raises:
        MismatchError: an expert has more replicas than vLLM's table takes.
    """
    most = int(slots.logical_replica_count().max())
    if most > MAX_REPLICAS:
        raise MismatchError(
            f"{slots.source}: an expert has {most} replicas, and vLLM's table takes {MAX_REPLICAS}; plan with less redundancy"
        )
    backend, gains = flags_of(VLLM, slots.backend, slots.source)
    return Exported(data=dump_json(slots.physical_to_logical.tolist()), launch=_launch(slots, backend), notes=gains)


def export_loads(loads: Any) -> bytes:
    """`[MoE layers, experts]` loads as the bytes of a `.npy` file, int64: what vLLM's balancing policy is given."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(loads, dtype=np.int64), allow_pickle=False)
    return stream.getvalue()


def import_map(path: Path, num_ranks: int, hints: Hints) -> SlotMap:
    """Read a slot map, in any of the forms that are proposed for vLLM (`read_map`).

    Raises:
        PlacementError: not such a file, or a broken map.
    """
    table, layer_ids = read_map(read_json(path, PlacementError), num_ranks, hints, str(path))
    return slot_map(table, hints, layer_ids=layer_ids, num_ranks=num_ranks, source=str(path))


def _three(array: Ids, where: str) -> Ids:
    if array.ndim != 3:
        raise TraceError(
            where,
            "routed_experts",
            f"shape {array.shape} is not [tokens, layers, k]",
            "give CompletionOutput.routed_experts; loads are for --engine loads",
        )
    return array.astype(np.int64) if array.dtype == np.uint64 else array


def _launch(slots: SlotMap, backend: str) -> str:
    config = f'{{"num_redundant_experts": {slots.num_redundant}, "window_size": {WINDOW}, "step_interval": {INTERVAL}}}'
    ours = "GRACE_MOE_DISPATCH=hierarchical " if slots.backend == "hierarchical" else ""
    return (
        f"{ours}GRACE_MOE_PLAN=PLAN vllm serve MODEL --data-parallel-size {slots.num_ranks} --enable-expert-parallel --enable-eplb \\\n"
        f"  --all2all-backend {backend} --eplb-config '{config}'"
    )
