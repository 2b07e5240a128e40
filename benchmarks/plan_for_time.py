"""Plans for time against plans for copies, modelled by `cost`. Writes a results page in Markdown.

    python benchmarks/plan_for_time.py TRACE... [--layers 2] [--cases 7 8] [--out page.md]

Plans are made on one half of the requests and timed on the other, each request once on every device: a batch has as many tokens on each.
`copies` is `plan(backend=...)`, which knows the devices' speeds; as if equal is the same on equal devices. GEM (arXiv 2605.19945) and ViBE
(arXiv 2606.00735) are our own restatements, which know speeds and no traffic. GEM: experts are exchanged between devices until the slowest
is no faster, no replicas. ViBE: heavy experts to fast devices, here with EPLB's replicas.
"""

import argparse
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, plan
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.evaluation.flows import replay_flows
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning.baselines.eplb import add_replicas
from grace_moe.topology import Link
from small_optimum import everywhere

GPT_OSS = ModelSizes(num_experts=32, top_k=4, hidden_size=2880, expert_size=2880, weight_bytes=0.5625, moe_layers=24, source="gpt-oss-20b")
GBIT = 1e9 / 8


def gbit(shape: str, rate: float) -> Topology:
    """A cluster of A100s with links of so many Gbit/s a device between nodes."""
    return replace(Topology.parse(f"{shape}:a100-200g"), cross_node=Link(bandwidth_bytes_per_s=rate * GBIT, latency_s=8e-6))


def edge() -> Topology:
    """Two fast nodes and an edge node of a quarter of their speed, behind 10 Gbit/s."""
    return with_matrix(slow_node(), lambda a, b: 10 * GBIT if 2 in (a, b) else 200 * GBIT)


def slow_node() -> Topology:
    """Three nodes with links alike, one of a quarter of the others' speed."""
    topology = gbit("3x2", 200)
    slow = replace(topology.nodes[2], devices=tuple(replace(device, relative_speed=0.25) for device in topology.nodes[2].devices))
    return replace(topology, nodes=(*topology.nodes[:2], slow))


def bad_pair() -> Topology:
    """Four nodes, of which two have an eighth of the bandwidth between them."""
    return with_matrix(gbit("4x2", 200), lambda a, b: 25 * GBIT if {a, b} == {0, 1} else 200 * GBIT)


def with_matrix(topology: Topology, between: Callable[[int, int], float]) -> Topology:
    """The topology with a bandwidth for each pair of nodes."""
    node = topology.node_of_device.tolist()
    inside = topology.intra_node.bandwidth_bytes_per_s
    return replace(topology, bandwidth=tuple(tuple(inside if a == b else between(a, b) for b in node) for a in node))


def cases() -> list[tuple[str, str, Topology, str, int, str]]:
    """Regime, cluster, phase, batch and backend."""
    return [
        ("slow links", "4x4, 25 Gbit/s", gbit("4x4", 25), "prefill", 32_768, "hierarchical"),
        ("fast links", "4x4, 100 Gbit/s", gbit("4x4", 100), "prefill", 32_768, "hierarchical"),
        ("fast links", "4x4 H100, 400 Gbit/s", Topology.parse("4x4:h100-400g"), "prefill", 32_768, "hierarchical"),
        ("decode", "4x4 H100, 400 Gbit/s", Topology.parse("4x4:h100-400g"), "decode", 128, "hierarchical"),
        ("decode", "1x8 H100", Topology.parse("1x8:h100-400g"), "decode", 64, "hierarchical"),
        ("NVL72", "1x16 GB200", Topology.parse("1x16:gb200-nvl72"), "decode", 128, "hierarchical"),
        ("NVL72", "1x16 GB200", Topology.parse("1x16:gb200-nvl72"), "prefill", 32_768, "hierarchical"),
        ("2+1", "2 fast nodes, a slow edge node", edge(), "prefill", 32_768, "hierarchical"),
        ("bad pair", "4x2, one pair of nodes at an eighth", bad_pair(), "prefill", 32_768, "hierarchical"),
        ("2+1", "2 fast nodes, a slow node, links alike", slow_node(), "prefill", 32_768, "hierarchical"),
    ]


def by_speed_alone(trace: RoutingTrace, topology: Topology, *, replicas: bool) -> Placement:
    """ViBE with replicas, GEM without: the greatest load over speed is made small; no traffic is known."""
    layers = []
    devices, speed = topology.num_devices, topology.relative_speed
    for index, layer_id in enumerate(trace.layer_ids):
        ids = trace.topk_ids[:, index]
        load = np.bincount(ids[ids >= 0].ravel(), minlength=trace.num_experts).astype(float)
        slots = -(-int(trace.num_experts * (1.25 if replicas else 1.0)) // devices)
        held = vibe(load, speed, slots) if replicas else gem(load, speed, slots)
        hosts = tuple(tuple(d for d in range(devices) if expert in held[d]) for expert in range(trace.num_experts))
        layers.append(LayerPlacement(layer_id=layer_id, devices_of_expert=hosts, replica_weights=even_weights(hosts), replica_choice="wrr"))
    return Placement(topology=topology, num_experts=trace.num_experts, layers=tuple(layers), model=trace.model, replica_choice="wrr")


def vibe(load: np.ndarray, speed: np.ndarray, slots: int) -> list[set[int]]:
    """Heaviest replica first, to the device that would end soonest."""
    in_slot, count = add_replicas(load, min(slots * len(speed), len(load) * len(speed)))
    held: list[set[int]] = [set() for _ in speed]
    carried = np.zeros(len(speed))
    for expert in sorted(in_slot, key=lambda e: -load[e] / count[e]):
        room = [d for d in range(len(speed)) if len(held[d]) < slots and expert not in held[d]]
        if room:
            device = min(room, key=lambda d: (carried[d] + load[expert] / count[expert]) / speed[d])
            held[device].add(expert)
            carried[device] += load[expert] / count[expert]
    return held


def gem(load: np.ndarray, speed: np.ndarray, slots: int) -> list[set[int]]:
    """In order, then exchanges between the slowest device and another while the slower of the two gets faster."""
    held = [set(part.tolist()) for part in np.array_split(np.arange(len(load)), len(speed))]
    while True:
        time = np.array([sum(load[e] for e in own) for own in held]) / speed
        slow = int(time.argmax())
        best, least = None, time[slow]
        for other in range(len(speed)):
            for a in held[slow]:
                for b in held[other] if other != slow else ():
                    shift = load[a] - load[b]
                    after = max(time[slow] - shift / speed[slow], time[other] + shift / speed[other])
                    if after < least - 1e-9:
                        best, least = (other, a, b), after
        if best is None:
            return held
        other, a, b = best
        held[slow] = held[slow] - {a} | {b}
        held[other] = held[other] - {b} | {a}


def timed(case: tuple[str, str, Topology, str, int, str], trace: RoutingTrace, model: ModelSizes) -> dict[str, float]:
    """Milliseconds of a layer under each plan, on the half that was not planned on."""
    _, _, topology, phase, batch, backend = case
    setting = Setting(model=model, phase=phase, batch_tokens=batch, backend=backend)
    planning_half, measuring_half = trace.split_requests()
    plans = {
        "copies": plan(planning_half, topology, backend=backend),
        "time": plan(planning_half, topology, setting=setting),
        "vibe": by_speed_alone(planning_half, topology, replicas=True),
        "gem": by_speed_alone(planning_half, topology, replicas=False),
    }
    if len(set(topology.relative_speed)) > 1:
        equal = Topology.parse(topology.shape)
        plans["equal"] = replace(plan(planning_half, equal, backend=backend), topology=topology)
    measured = everywhere(measuring_half, topology.num_devices)
    flows = {name: replay_flows(placed, measured, topology, phase=phase)[0] for name, placed in plans.items()}
    return {name: 1e3 * step_time(each, topology, setting).total for name, each in flows.items()}


def main() -> None:
    """All cases, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="of each trace, spread over it")
    parser.add_argument("--cases", nargs="+", type=int, help="numbers of the cases to run, from 0; all unless given")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/plan_for_time_{date.today()}.md"))
    options = parser.parse_args()
    rows = []
    for path in options.traces:
        whole = RoutingTrace.load(path)
        layers = np.linspace(0, whole.num_layers - 1, options.layers + 2).astype(int)[1:-1]
        ids = tuple(whole.layer_ids[layer] for layer in layers)
        trace = replace(whole, topk_ids=whole.topk_ids[:, layers], layer_ids=ids, topk_weights=None)
        model = GPT_OSS if trace.num_experts == 32 else replace(OLMOE, num_experts=trace.num_experts, top_k=trace.top_k)
        for case in [case for number, case in enumerate(cases()) if options.cases is None or number in options.cases]:
            regime, cluster, _, phase, batch, _ = case
            found = timed(case, trace, model)
            over = {name: f"{found['time'] / found[name]:.3f}" if name in found else "" for name in ("copies", "equal", "vibe", "gem")}
            cells = (path.stem, regime, cluster, f"{phase} {batch:,}", f"{found['copies']:.4f}", f"{found['time']:.4f}", *over.values())
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    columns = ("trace", "regime", "cluster", "served", "copies, ms", "time, ms", "time / copies", "/ as if equal", "/ ViBE", "/ GEM")
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    told = f"`benchmarks/plan_for_time.py`, {date.today()}, {platform.machine()}, {options.layers} layer(s) of each trace."
    rest = (__doc__ or "").split("page.md]")[1].strip()
    options.out.write_text("\n".join([f"# Plans for time\n\n{told} {rest}\n", head, *rows]) + "\n")


if __name__ == "__main__":
    main()
