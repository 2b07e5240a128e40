"""Plans for time against the optimum, found by exhaustion, on small unequal clusters. Writes a results page in Markdown.

    python benchmarks/small_optimum.py [--instances 200] [--rows rows.jsonl] [--out page.md]

An instance is a made trace of 120 short requests on 2 to 4 devices in 1 to 4 nodes: devices of unequal speed and memory, in half of them a
pair of devices with a slow link; prefill or decode, with room for replicas or without. The optimum is the fastest of all placements that
fit, replicas drawn evenly, chosen jointly, near or by weight. Each request comes in once on every device: where a few happen to come in
is luck that no plan can know. Plans are made with `tolerance=inf`: for time alone, without the floor of balance, of the trace as it is.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations
from math import inf
from pathlib import Path

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, plan
from grace_moe.cost.sizes import OLMOE
from grace_moe.cost.step import Setting, layer_seconds
from grace_moe.evaluation.flows import replay_flows
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.trace import synthetic_trace

MOST_PLACEMENTS = 3000
AT_ONCE = 64
"""Placements that are replayed together, as layers of one."""
Hosts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What to plan."""

    topology: Topology
    trace: RoutingTrace
    setting: Setting
    slots: tuple[int, ...]
    """Of each device; its `memory_bytes` are as many, at one byte an expert."""
    placements: tuple[Hosts, ...]
    """All that fit."""
    told: str


def instance(seed: int) -> Instance:
    """The instance of this seed."""
    generator = np.random.default_rng(seed)
    while True:
        sizes = [(2,), (1, 1), (3,), (1, 1, 1), (2, 1), (4,), (2, 2), (1, 1, 1, 1)][generator.integers(8)]
        devices, experts = sum(sizes), int(generator.integers(4, 9))
        spare = int(generator.integers(0, 3))
        slots = slots_of(experts + spare, devices, experts, uneven=bool(generator.integers(2)), generator=generator)
        placements = () if slots is None else tuple(all_within(experts, slots))
        if slots is not None and 1 < len(placements) <= MOST_PLACEMENTS:
            break
    topology = cluster(sizes, slots, generator)
    trace = synthetic_trace(
        tokens=240, experts=experts, top_k=2, requests=120, clusters=2, skew=float(generator.choice([0, 0.8])), seed=seed
    )
    model = replace(OLMOE, num_experts=experts, top_k=2)
    setting = Setting(
        model=model, phase=("prefill", "decode")[generator.integers(2)], batch_tokens=int(generator.choice([64, 1024, 32_768]))
    )
    told = f"{'+'.join(map(str, sizes))} devices, {experts} experts, slots {slots}, {setting.phase} {setting.batch}"
    return Instance(topology=topology, trace=replace(trace, phase=None), setting=setting, slots=slots, placements=placements, told=told)


def slots_of(total: int, devices: int, experts: int, *, uneven: bool, generator: np.random.Generator) -> tuple[int, ...] | None:
    """So many slots over the devices, at least one each; None where a device would have more than there are experts."""
    parts = np.full(devices, total // devices) + (np.arange(devices) < total % devices)
    if uneven:
        parts = 1 + generator.multinomial(total - devices, np.full(devices, 1 / devices))
    return tuple(int(part) for part in parts) if parts.max() <= experts else None


def cluster(sizes: tuple[int, ...], slots: tuple[int, ...], generator: np.random.Generator) -> Topology:
    """A100s of unequal speed with links of 200 Gbit/s between nodes; in half of them a pair of devices has a slow link."""
    whole = Topology.parse(f"{len(sizes)}x{max(sizes)}:a100-200g")
    speeds, memory = iter(generator.choice([0.25, 0.5, 1.0, 1.0], len(slots)).tolist()), iter(slots)
    nodes = tuple(
        replace(node, devices=tuple(replace(d, relative_speed=next(speeds), memory_bytes=next(memory)) for d in node.devices[:size]))
        for node, size in zip(whole.nodes, sizes, strict=True)
    )
    topology = replace(whole, nodes=nodes)
    if generator.integers(2):
        return topology
    node = topology.node_of_device
    inside, between = topology.intra_node.bandwidth_bytes_per_s, topology.cross_node.bandwidth_bytes_per_s
    rates = np.where(node[:, None] == node, inside, between)
    a, b = generator.choice(len(slots), 2, replace=False)
    rates[a, b] = rates[b, a] = rates[a, b] / generator.choice([4, 16])
    return replace(topology, bandwidth=tuple(map(tuple, rates.tolist())))


def all_within(experts: int, slots: tuple[int, ...]) -> Iterator[Hosts]:
    """Every placement with at most these experts on each device; ends after more than `MOST_PLACEMENTS`."""
    devices = range(len(slots))
    some = [hosts for size in range(1, len(slots) + 1) for hosts in combinations(devices, size)]
    stack: list[tuple[Hosts, tuple[int, ...]]] = [((), slots)]
    found = 0
    while stack and found <= MOST_PLACEMENTS:
        placed, room = stack.pop()
        if len(placed) == experts:
            found += 1
            yield placed
            continue
        for hosts in some:
            left = tuple(free - (device in hosts) for device, free in zip(devices, room, strict=True))
            if min(left) >= 0 and sum(left) >= experts - len(placed) - 1:
                stack.append(((*placed, hosts), left))


def everywhere(trace: RoutingTrace, devices: int) -> RoutingTrace:
    """The trace with every request once on every device."""
    _, request = np.unique(trace.requests, return_inverse=True)
    order = np.argsort(np.repeat(request, devices), kind="stable")
    copy = np.tile(np.arange(devices), len(request))
    ids = (np.repeat(request, devices) * devices + copy)[order]
    phase = None if trace.phase is None else np.repeat(trace.phase, devices)[order]
    topk_ids = np.repeat(trace.topk_ids, devices, axis=0)[order]
    return replace(trace, topk_ids=topk_ids, request_ids=ids.astype(np.int32), phase=phase, topk_weights=None)


def seconds(layers: list[LayerPlacement], one: Instance, replica_choice: str) -> np.ndarray:
    """`[placements]` seconds of a layer, each replayed by itself."""
    seen, found = everywhere(one.trace, one.topology.num_devices), []
    for start in range(0, len(layers), AT_ONCE):
        some = [replace(layer, layer_id=number) for number, layer in enumerate(layers[start : start + AT_ONCE])]
        trace = replace(seen, topk_ids=np.repeat(seen.topk_ids, len(some), axis=1), layer_ids=tuple(range(len(some))))
        placed = Placement(
            topology=one.topology, num_experts=trace.num_experts, layers=tuple(some), model=trace.model, replica_choice=replica_choice
        )
        parts = layer_seconds(replay_flows(placed, trace, one.topology)[0], one.topology, one.setting)
        found.append(parts["dispatch"] + parts["compute"] + parts["combine"] + parts["idle"])
    return np.concatenate(found)


def optimum(one: Instance) -> float:
    """Seconds of the fastest placement."""
    every = [LayerPlacement(layer_id=0, devices_of_expert=hosts, replica_weights=even_weights(hosts)) for hosts in one.placements]
    chosen_from = [layer for layer in every if any(len(row) > 1 for row in layer.devices_of_expert)]
    least = seconds(every, one, "joint").min()
    return float(min([least, *(seconds(chosen_from, one, choice).min() for choice in ("tar", "wrr") if chosen_from)]))


def gap(one: Instance) -> float:
    """How much longer the plan for time takes than the optimum."""
    ours = plan(one.trace, one.topology, setting=one.setting, slots_per_device=max(one.slots), expert_bytes=1, tolerance=inf)
    assert (ours.slots_per_device() <= np.array(one.slots)).all(), "the plan does not fit"
    return float(seconds(list(ours.layers), one, ours.replica_choice)[0]) / optimum(one) - 1


def main() -> None:
    """All instances, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first; the others follow")
    parser.add_argument("--rows", type=Path, help="keep what is found here, a line of JSON an instance, and run only what is not there")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/small_optimum_{date.today()}.md"))
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.instances)
    known = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [row for row in map(json.loads, known) if row["seed"] in seeds]
    for seed in sorted(set(seeds) - {row["seed"] for row in rows}):
        one = instance(seed)
        spare = sum(one.slots) > one.trace.num_experts
        rows.append({"seed": seed, "gap": gap(one), "told": one.told, "placements": len(one.placements), "spare": spare})
        print(json.dumps(rows[-1]), flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    head = "| instances | | within 2% | median | worst |\n|---|---|---|---|---|"
    lines = [
        f"| {name} | {len(gaps)} | {sum(x <= 0.02 for x in gaps)} | {np.median(gaps):.2%} | {max(gaps):.1%} |"
        for name, gaps in {
            "all": [row["gap"] for row in rows],
            "room for replicas": [row["gap"] for row in rows if row["spare"]],
            "one copy each": [row["gap"] for row in rows if not row["spare"]],
        }.items()
        if gaps
    ]
    over = sorted((row for row in rows if row["gap"] > 0.02), key=lambda row: -row["gap"])
    worst = [f"- {row['gap']:.1%} over: {row['told']}, {row['placements']:,} placements (seed {row['seed']})" for row in over]
    told = f"`benchmarks/small_optimum.py`, {date.today()}, {platform.machine()}, seeds {seeds.start} to {seeds.stop - 1}."
    rest = (__doc__ or "").split("page.md]")[1].strip()
    options.out.write_text("\n".join([f"# Small instances, by exhaustion\n\n{told} {rest}\n", head, *lines, "", *worst]) + "\n")


if __name__ == "__main__":
    main()
