"""A slow, obvious replay: one token, one expert, one device at a time, from the definitions of docs/metrics.md."""

import math
import statistics

import numpy as np

from grace_moe.choice import choice_table
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace


def reference_sources(requests, num_devices):
    dealt = {}
    for request in requests:
        dealt.setdefault(request, len(dealt) % num_devices)
    return [dealt[request] for request in requests]


def reference_steps(requests, phase):
    """Token -> number of its decode batch: the j-th decode token of its request. Prefill tokens are absent."""
    done, steps = {}, {}
    for token, (request, is_decode) in enumerate(zip(requests, phase, strict=True)):
        if is_decode:
            steps[token] = done.get(request, 0)
            done[request] = steps[token] + 1
    return steps


def reference(placement: Placement, trace: RoutingTrace, *, seed=0, passes=()):
    """Counts of every layer, one token, one expert, one device at a time. Copies and pairs by phase: [prefill, decode]."""
    topology = placement.topology
    members = [list(topology.devices_of_node(n)) for n in range(topology.num_nodes)]
    node_of = {device: n for n, devices in enumerate(members) for device in devices}
    speed = [device.relative_speed for node in topology.nodes for device in node.devices]
    requests = list(range(trace.num_tokens)) if trace.request_ids is None else trace.request_ids.tolist()
    source_of = reference_sources(requests, len(node_of))
    steps = None if trace.phase is None else reference_steps(requests, trace.phase.tolist())
    result = {
        name: []
        for name in ("cross", "intra", "flat", "flat_cross", "pairs", "pairs_cross", "cross_links", "intra_links", "load", "active")
        + ("phase_cross", "phase_load", "pass_cross", "pass_flat_cross")
    }
    for index, layer in enumerate(placement.layers):
        tables = [choice_table(seen, topology, placement.replica_choice) for seen in (layer, layer.in_decode())]
        phase_cross, phase_load = [0, 0], [[0] * len(node_of) for _ in range(2)]
        pass_cross, pass_flat_cross = ([0] * (max(passes, default=-1) + 1) for _ in range(2))
        cross = intra = flat = flat_cross = pairs = pairs_cross = 0
        cross_links = [[0] * len(members) for _ in node_of]
        intra_links = [[0] * max(map(len, members)) for _ in node_of]
        computed = [0] * len(node_of)
        active = {}
        for token in range(trace.num_tokens):
            source, experts = source_of[token], trace.topk_ids[token, index].tolist()
            phase = 0 if trace.phase is None else int(trace.phase[token])
            tokens = (np.array([experts], np.int64), np.array([source]), np.array([token]))
            chosen = tables[phase].choose(layer.layer_id, *tokens, seed=seed)[0].tolist()
            hosts = set()
            for expert, device in zip(experts, chosen, strict=True):
                if expert == -1:
                    assert device == -1
                    continue
                assert device in layer.devices_of_expert[expert]
                if phase and layer.decode_weights:
                    assert layer.decode_weights[expert][layer.devices_of_expert[expert].index(device)] > 0
                hosts.add(device)
                computed[device] += 1
                phase_load[phase][device] += 1
                pairs += device != source
                pairs_cross += node_of[device] != node_of[source]
                if steps is not None and token in steps:
                    active.setdefault(steps[token], {}).setdefault(device, set()).add(expert)
            for node, devices in enumerate(members):
                here = [device for device in devices if device in hosts]
                if node == node_of[source]:
                    hands_on = source
                else:
                    hands_on = devices[members[node_of[source]].index(source) % len(devices)]
                    if here:
                        cross += 1
                        phase_cross[phase] += 1
                        if len(passes):
                            pass_cross[passes[token]] += 1
                        cross_links[source][node] += 1
                for device in here:
                    if device != hands_on:
                        intra += 1
                        intra_links[hands_on][devices.index(device)] += 1
            flat += sum(device != source for device in hosts)
            far = sum(node_of[device] != node_of[source] for device in hosts)
            flat_cross += far
            if len(passes):
                pass_flat_cross[passes[token]] += far
        for name, value in zip(
            ("cross", "intra", "flat", "flat_cross", "pairs", "pairs_cross"),
            (cross, intra, flat, flat_cross, pairs, pairs_cross),
            strict=True,
        ):
            result[name].append(value)
        result["cross_links"].append(cross_links)
        result["intra_links"].append(intra_links)
        result["phase_cross"].append(phase_cross)
        result["phase_load"].append([[count / s for count, s in zip(counts, speed, strict=True)] for counts in phase_load])
        result["pass_cross"].append(pass_cross)
        result["pass_flat_cross"].append(pass_flat_cross)
        result["load"].append([count / s for count, s in zip(computed, speed, strict=True)])
        if steps:
            batches = range(max(steps.values()) + 1)
            result["active"].append([max((len(experts) for experts in active.get(b, {}).values()), default=0) for b in batches])
    return result


BATCH_TOKENS, ROW_BYTES, PAIRS_PER_SECOND = 32_768, 4096, 8e6


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def reference_metrics(placement: Placement, trace: RoutingTrace, counts) -> dict:
    """Every metric by its JSON name, from the counts of `reference`: means over the layers that have any pair."""
    layers = [layer for layer, load in enumerate(counts["load"]) if any(load)]
    chose = [any(expert >= 0 for row in token for expert in row) for token in trace.topk_ids.tolist()]
    tokens = max(1, sum(chose))

    def copies(name):
        return mean(counts[name][layer] for layer in layers) / tokens

    loads = [counts["load"][layer] for layer in layers]
    found = {
        "cross_node_copies": copies("cross"),
        "intra_node_copies": copies("intra"),
        "flat_copies": copies("flat"),
        "flat_cross_node_copies": copies("flat_cross"),
        "pair_copies": copies("pairs"),
        "pair_cross_node_copies": copies("pairs_cross"),
        "load_max_over_mean": mean(max(load) / mean(load) for load in loads),
        "load_std_over_mean": mean(statistics.pstdev(load) / mean(load) for load in loads),
        "idle_fraction": mean(1 - mean(load) / max(load) for load in loads),
        "active_experts_max": None,
    }
    phases = [0] * trace.num_tokens if trace.phase is None else trace.phase.tolist()
    if any(phases):
        by_layer = [[most for most in batches if most] for batches in counts["active"]]
        found["active_experts_max"] = mean(mean(most) for most in by_layer if most)
    in_phase = [sum(c for c, p in zip(chose, phases, strict=True) if p == phase) for phase in (0, 1)]
    for phase, name in enumerate(("prefill", "decode")):
        seen = [layer for layer in range(len(counts["load"])) if any(counts["phase_load"][layer][phase])]
        found[f"{name}_cross_node_copies"] = found[f"{name}_load_max_over_mean"] = None
        if all(in_phase):
            found[f"{name}_cross_node_copies"] = mean(counts["phase_cross"][layer][phase] for layer in seen) / in_phase[phase]
            of_phase = [counts["phase_load"][layer][phase] for layer in seen]
            found[f"{name}_load_max_over_mean"] = mean(max(load) / mean(load) for load in of_phase)
    every = range(placement.topology.num_devices)
    held = [[sum(device in devices for devices in layer.devices_of_expert) for device in every] for layer in placement.layers]
    found["slots_total_over_experts"] = mean(sum(slots) for slots in held) / placement.num_experts
    found["slots_max_per_device"] = max(max(slots) for slots in held)
    return found | _reference_times(placement, counts, layers, loads, tokens)


def _reference_times(placement: Placement, counts, layers, loads, tokens) -> dict:
    """The modelled time of a layer, link by link."""
    topology = placement.topology
    members = [list(topology.devices_of_node(n)) for n in range(topology.num_nodes)]
    scale = BATCH_TOKENS / tokens

    def stage(name, link, receiver):
        seconds = []
        for layer in layers:
            sends, takes_in = [0.0] * topology.num_devices, [0.0] * topology.num_devices
            for sender, row in enumerate(counts[name][layer]):
                for column, number in enumerate(row):
                    if number:
                        time = number * scale * ROW_BYTES / link.bandwidth_bytes_per_s
                        sends[sender] += time
                        takes_in[receiver(sender, column)] += time
            longest = max(*sends, *takes_in, 0.0)
            seconds.append(longest + link.latency_s if longest else 0.0)
        return mean(seconds)

    node_of = {device: n for n, devices in enumerate(members) for device in devices}
    local = {device: devices.index(device) for devices in members for device in devices}
    dispatch = stage("cross_links", topology.cross_node, lambda d, n: members[n][local[d] % len(members[n])])
    dispatch += stage("intra_links", topology.intra_node, lambda d, rank: members[node_of[d]][rank])
    compute = mean(mean(load) for load in loads) * scale / PAIRS_PER_SECOND
    idle = mean(max(load) for load in loads) * scale / PAIRS_PER_SECOND - compute
    return {
        "modelled_layer_time": 2 * dispatch + compute + idle,
        "modelled_dispatch_time": dispatch,
        "modelled_compute_time": compute,
        "modelled_combine_time": dispatch,
        "modelled_idle_time": idle,
    }
