"""A slow, obvious replay: one token, one expert, one device at a time, from the definitions of docs/metrics.md."""

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
    """Every number of docs/metrics.md, one token, one expert, one device at a time. Copies and pairs by phase: [prefill, decode]."""
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
