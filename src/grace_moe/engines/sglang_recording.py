"""SGLang: recorder dumps and routed experts in (read in sglang 0.5.23).

SGLang numbers all decoder layers. Its recorder writes physical slots, `return_routed_experts` gives logical experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.counts import layers_of_counts
from grace_moe.engines.imported import Hints, Imported
from grace_moe.engines.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.responses import base64_bytes, read_objects
from grace_moe.engines.torch_dumps import read_torch, torch_integers
from grace_moe.errors import TraceError
from grace_moe.files import bounded_counts

EXTEND, DECODE_MODE, IDLE = 1, 2, 4
"""`ForwardMode` of a recorded pass."""
MAX_EXPERT_IDS = 32_767


def import_dump(paths: Sequence[Path], hints: Hints) -> Imported:
    """Recorder dumps (`.pt`, of modes stat, stat_approx, per_pass and per_token; those of several ranks together), or responses
    with `meta_info.routed_experts` (`.json`, `.jsonl`).

    Raises:
        TraceError: not such a file, or damaged.
        UsageError: something of the model is unknown and needed.
    """
    if paths[0].suffix in (".json", ".jsonl"):
        return _import_responses(list(paths), hints)
    counts: list[npt.NDArray[np.int64]] = []
    tokens: list[_Pass] = []
    num_experts = 0
    for path in paths:
        dump = read_torch(path)
        if not isinstance(dump, dict):
            raise TraceError(
                str(path), "dump", f"{type(dump).__name__} is not a recorder dump", "give what /dump_expert_distribution_record wrote"
            )
        if "logical_count" in dump:
            field = dump["logical_count"]
            three = torch_integers(field, str(path), "logical_count", 3)
            counts.append(bounded_counts(three, kind=TraceError, source=str(path), field="logical_count").sum(axis=0))
            continue
        of_slot = torch_integers(dump.get("last_physical_to_logical_map"), str(path), "last_physical_to_logical_map", 2).astype(np.int64)
        if not of_slot.size or of_slot.min() < 0 or of_slot.max() >= MAX_EXPERT_IDS:
            raise TraceError(str(path), "last_physical_to_logical_map", "empty, or ids out of range", "record it again")
        num_experts = max(num_experts, int(of_slot.max()) + 1)
        records = dump.get("records")
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise TraceError(str(path), "records", "missing, or not a list of records", "record it again")
        for index, record in enumerate(records):
            where = f"{path}: records[{index}]"
            if "topk_ids_of_layer" in record:
                tokens.append(_pass(record, of_slot, where))
            elif "global_physical_count" in record:
                counts.append(_logical_counts(record["global_physical_count"], of_slot, num_experts, where))
            else:
                raise TraceError(where, "topk_ids_of_layer", "missing, and no global_physical_count", "record it again")
    source = str(paths[0])
    if tokens and counts:
        raise TraceError(source, "records", "some of tokens and some of counts", "import dumps of one mode at a time")
    if counts:
        width = max(c.shape[1] for c in counts)
        if len({c.shape[0] for c in counts}) > 1:
            raise TraceError(source, "layers", "dumps differ in their number", "import dumps of one model")
        total = np.zeros((counts[0].shape[0], width), dtype=np.int64)
        for count in counts:
            total[:, : count.shape[1]] += count
        return layers_of_counts(total, hints, source)
    return _trace_of_passes(tokens, hints, hints.num_experts or num_experts, source)


class _Pass:
    """The tokens of one recorded forward pass."""

    def __init__(self, ids: npt.NDArray[np.int64], lengths: list[int] | None, decode: bool | None, key: tuple[Any, ...]) -> None:
        self.ids, self.lengths, self.decode, self.key = ids, lengths, decode, key


def _pass(record: dict[str, Any], of_slot: npt.NDArray[np.int64], where: str) -> _Pass:
    physical = torch_integers(record["topk_ids_of_layer"], where, "topk_ids_of_layer", 3)  # [layers, tokens, width]
    layers, tokens, _ = physical.shape
    if layers != len(of_slot) or physical.min(initial=-1) < -1 or physical.max(initial=-1) >= of_slot.shape[1]:
        raise TraceError(
            where,
            "topk_ids_of_layer",
            f"shape {physical.shape} or a slot is outside the map's {of_slot.shape}",
            "record it again (shared experts fused into the routed ones are not supported)",
        )
    logical = np.where(physical < 0, -1, of_slot[np.arange(layers)[:, None, None], physical])
    mode, lengths = record.get("forward_mode"), record.get("extend_seq_lens")
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != tokens:
        lengths = _lengths_of_positions(record.get("positions"), tokens)
    decode = None if type(mode) is not int else mode != EXTEND if mode in (EXTEND, DECODE_MODE, IDLE) else None
    inputs = record.get("input_ids")
    key = (record.get("forward_pass_id"), str(inputs if not isinstance(inputs, list) else inputs[:64]), logical.tobytes())
    return _Pass(logical.transpose(1, 0, 2), [1] * tokens if decode else lengths, decode, key)


def _lengths_of_positions(positions: Any, tokens: int) -> list[int] | None:
    """A request begins wherever the position does not go up by one."""
    if not isinstance(positions, list) or len(positions) != tokens or not all(type(p) is int for p in positions) or not tokens:
        return None
    begins = [0, *(i for i in range(1, tokens) if positions[i] != positions[i - 1] + 1), tokens]
    return [after - before for before, after in pairwise(begins)]


def _trace_of_passes(passes: list[_Pass], hints: Hints, num_experts: int, source: str) -> Imported:
    notes, seen, requests = [], set(), []
    for recorded in passes:
        if recorded.key in seen:
            continue
        seen.add(recorded.key)
        start = 0
        for length in recorded.lengths or [1] * len(recorded.ids):
            prompt = None if recorded.decode is None else 0 if recorded.decode else length
            requests.append(RoutedRequest(topk_ids=recorded.ids[start : start + length], prompt_tokens=prompt))
            start += length
    if len(seen) < len(passes):
        notes.append(f"{len(passes) - len(seen)} passes were recorded by several ranks alike (tensor parallelism) and count once")
    if any(p.decode for p in passes):
        notes.append("SGLang's recorder names no requests: each prefill sequence is one, and so is each decoded token")
    imported = trace_of_requests([r for r in requests if len(r.topk_ids)], hints, num_experts=num_experts, source=source)
    return Imported(trace=imported.trace, notes=(*imported.notes, *notes))


def _logical_counts(value: Any, of_slot: npt.NDArray[np.int64], num_experts: int, where: str) -> npt.NDArray[np.int64]:
    physical = torch_integers(value, where, "global_physical_count", 2)
    physical = bounded_counts(physical, kind=TraceError, source=where, field="global_physical_count")
    if physical.shape != of_slot.shape:
        raise TraceError(where, "global_physical_count", f"shape {physical.shape}, and the map has {of_slot.shape}", "record it again")
    logical = np.zeros((len(of_slot), num_experts), dtype=np.int64)
    np.add.at(logical, (np.arange(len(of_slot))[:, None], of_slot), physical)
    return logical


def _import_responses(paths: list[Path], hints: Hints) -> Imported:
    why = "SGLang's routed experts come without their shape"
    layers, k = hints.need("num_hidden_layers", why), hints.need("top_k", why)
    experts = hints.need("num_experts", "the responses don't say how many experts there are")
    requests = []
    for where, value in read_objects(paths):
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
