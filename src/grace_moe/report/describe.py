"""What `inspect` says of a file."""

from __future__ import annotations

from typing import Any

import numpy as np

from grace_moe.placement import Placement, PlacementDifference
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, expert_loads, skew


def describe(thing: RoutingTrace | LoadProfile | Topology | Placement) -> dict[str, Any]:
    """What `inspect` says of a file: plain values, in the order to show them."""
    if isinstance(thing, RoutingTrace):
        return _describe_trace(thing)
    if isinstance(thing, LoadProfile):
        return _describe_profile(thing)
    if isinstance(thing, Topology):
        return _describe_topology(thing)
    return _describe_placement(thing)


def describe_difference(found: PlacementDifference, expert_bytes: int | None) -> dict[str, Any]:
    """What `inspect --against` says: expert copies to load, and their bytes where those of an expert are known."""
    facts: dict[str, Any] = {
        "kind": "difference",
        "copies": found.copies,
        "copies_to_load": found.moved,
        "share_to_load": round(found.moved / max(1, found.copies), 4),
        "from_other_nodes": int(found.from_other_nodes.sum()),
        "most_on_a_device": int(found.loads.sum(axis=0).max()),
        "by_device": found.loads.sum(axis=0).tolist(),
        "by_layer": found.loads.sum(axis=1).tolist(),
    }
    if expert_bytes is not None:
        facts["bytes_to_load"] = found.bytes_to_load(expert_bytes)
    return facts


def _describe_trace(trace: RoutingTrace) -> dict[str, Any]:
    loads = expert_loads(trace)
    return {
        "kind": "trace",
        "model": trace.model,
        "dataset": trace.dataset,
        "tokens": trace.num_tokens,
        "requests": len(np.unique(trace.requests)) if trace.request_ids is not None else "not recorded",
        "decode_tokens": int((trace.phase == 1).sum()) if trace.phase is not None else "not recorded",
        "layers": trace.num_layers,
        "layer_ids": list(trace.layer_ids),
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
        "tells": _tells(trace),
        "weights": "recorded" if trace.topk_weights is not None else "not recorded",
        "expert_load_max_over_mean": round(float(skew(trace).mean()), 3),
        "experts_never_chosen": int((loads == 0).sum()),
        "digest": trace.digest,
    }


def _describe_profile(profile: LoadProfile) -> dict[str, Any]:
    return {
        "kind": "trace",
        "model": profile.model,
        "dataset": profile.dataset,
        "layers": profile.num_layers,
        "layer_ids": list(profile.layer_ids),
        "num_experts": profile.num_experts,
        "tells": "how often each expert fires, not which fire together",
        "expert_load_max_over_mean": round(float(skew(profile).mean()), 3),
        "experts_never_chosen": int((profile.loads == 0).sum()),
        "digest": profile.digest,
    }


def _tells(trace: RoutingTrace) -> str:
    """What the trace's rows stand for."""
    if trace.surrogate:
        return "tokens drawn to match counts of experts and pairs: to plan on, not to measure on"
    return "each token's experts"


def _describe_topology(topology: Topology) -> dict[str, Any]:
    def link(name: str) -> str:
        value = getattr(topology, name)
        return f"{value.bandwidth_bytes_per_s / 1e9:g} GB/s, {value.latency_s * 1e6:g} us"

    return {
        "kind": "topology",
        "shape": topology.shape,
        "nodes": topology.num_nodes,
        "devices": topology.num_devices,
        "link_inside_nodes": link("intra_node"),
        "link_between_nodes": link("cross_node"),
        "bandwidth_matrix": "given" if topology.bandwidth is not None else "not given",
        "relative_speeds": sorted(set(topology.relative_speed.tolist())),
        "memory_bytes": sorted({device.memory_bytes or 0 for node in topology.nodes for device in node.devices} - {0}) or "not limited",
    }


def _used_in_decode(placement: Placement) -> float:
    """Copies that decode uses, over experts, mean over layers."""
    used = sum(len(devices) for layer in placement.layers for devices in layer.in_decode().devices_of_expert)
    return used / len(placement.layers) / placement.num_experts


def _describe_placement(placement: Placement) -> dict[str, Any]:
    slots = placement.slots_per_device()
    return {
        "kind": "placement",
        "method": placement.provenance.get("method", "not recorded"),
        "model": placement.model,
        "topology": placement.topology.shape,
        "layers": len(placement.layers),
        "num_experts": placement.num_experts,
        "slots_total_over_experts": round(placement.slots_total_over_experts, 4),
        "slots_per_device": f"{int(slots.min())} to {int(slots.max())}",
        "replicated_experts_per_layer": round(
            sum(len(d) > 1 for layer in placement.layers for d in layer.devices_of_expert) / len(placement.layers), 2
        ),
        "replica_choice": placement.replica_choice,
        "slots_used_in_decode_over_experts": round(_used_in_decode(placement), 4),
        "provenance": placement.provenance,
    }
