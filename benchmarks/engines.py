"""What a plan is worth inside an engine: exported, read back, replayed as the engine chooses replicas. Writes a results page in Markdown.

    python benchmarks/engines.py TRACE... [--shift TRACE] [--topologies 2x2,2x4,4x4] [-o page.md]

Half of each trace's requests to plan on, half to measure on. Every placement has the same slots; EPLB is what the engines do themselves.
`any`: replicas in turn, near or far (vLLM's hash, TensorRT-LLM's round robin). `nearest`: own device, else own node, else any (SGLang's
static dispatch, our vLLM plug-in). With --shift, the first trace's plan meets that trace: as it is, and re-planned by its loads alone.
"""

import argparse
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.engines import EXPORTERS, MAP_IMPORTERS, Hints, SlotMap, equalise
from grace_moe.engines.equaliser import Window, replan, spread_evenly
from grace_moe.placement import even_weights
from grace_moe.trace import expert_loads

REDUNDANCY = 1.25


def exported(placement: Placement, trace: RoutingTrace | None = None, slots: int | None = None, engine: str = "sglang") -> Placement:
    """The placement that an engine gets: finished by the trace that was planned on, where given, and through the engine's own file,
    which keeps neither weights nor primaries."""
    if trace is not None:
        placement = equalise(placement, slots_per_device=slots, trace=trace).placement
    hints = Hints(num_experts=placement.num_experts, layer_ids=placement.layer_ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map"
        path.write_bytes(EXPORTERS[engine](SlotMap.of(placement), hints, ()).data)
        return MAP_IMPORTERS[engine](path, placement.topology.num_devices, hints).to_placement(placement.topology)


def measured(placement: Placement, trace: RoutingTrace, choice: str) -> tuple[float, float]:
    """Copies to other nodes and the busiest device's load over the mean, replicas sharing evenly."""
    layers = tuple(replace(layer, replica_weights=even_weights(layer.devices_of_expert), replica_choice="") for layer in placement.layers)
    found = evaluate(replace(placement, layers=layers, replica_choice=choice), trace)
    return found.cross_node_copies, found.load_max_over_mean


def rows_of(rows: Sequence[tuple[str, Placement, str]], trace: RoutingTrace) -> list[str]:
    lines = ["| placement | replica | slots / experts | between nodes | against EPLB | busiest device |", "|---|---|---|---|---|---|"]
    base = None
    for name, placement, choice in rows:
        copies, load = measured(placement, trace, choice)
        base = copies if base is None else base
        how = {"wrr": "any", "tar": "nearest"}[choice]
        lines.append(
            f"| {name} | {how} | {placement.slots_total_over_experts:.2f} | {copies:.3f} | {copies / base - 1:+.0%} | {load:.3f} |"
        )
    return lines


def compared(trace: RoutingTrace, topology: Topology) -> list[str]:
    first, second = trace.split_requests()
    slots = -(-int(REDUNDANCY * trace.num_experts) // topology.num_devices)
    eplb = exported(plan(first, topology, "eplb", slots_per_device=slots))
    grace = exported(plan(first, topology, slots_per_device=slots), first)
    paper = exported(plan(first, topology, "grace_paper"), first, slots)
    bare = exported(plan(first, topology, redundancy=1.0), first)
    rows = [
        ("EPLB", eplb, "wrr"),
        ("EPLB", eplb, "tar"),
        ("GRACE", grace, "wrr"),
        ("GRACE", grace, "tar"),
        ("GRACE paper, equalised", paper, "tar"),
        ("GRACE without replicas", bare, "wrr"),
    ]
    return rows_of(rows, second)


def replanned(before: Placement, trace: RoutingTrace) -> Placement:
    """What re-planning by loads alone, without a budget, makes of a placement when two windows have the trace's loads."""
    pairs = spread_evenly(before, expert_loads(trace))
    return replan(Window(serving=before, loads=pairs, before=pairs, most_moves=before.num_experts * len(before.layers))).placement


def shifted(trace: RoutingTrace, other: RoutingTrace, topology: Topology) -> list[str]:
    loads_of, measure_on = other.split_requests()
    slots = -(-int(REDUNDANCY * trace.num_experts) // topology.num_devices)
    before = exported(plan(trace, topology, slots_per_device=slots), trace)
    after = replanned(before, loads_of)
    rows = [
        ("EPLB on the new loads", plan(loads_of, topology, "eplb", slots_per_device=slots), "tar"),
        ("GRACE, planned before the shift", before, "tar"),
        ("the same, re-planned by the new loads", after, "tar"),
        (
            "GRACE, planned on the new text",
            exported(plan(loads_of, topology, slots_per_device=slots), loads_of),
            "tar",
        ),
    ]
    return rows_of(rows, measure_on)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--shift", type=Path)
    parser.add_argument("--topologies", default="2x2,2x4,4x4")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Plans inside engines",
        "",
        f"`python benchmarks/engines.py`, {date.today()}, grace-moe {version('grace-moe')}, Python {platform.python_version()}.",
        "Replayed, not timed. Every second request to plan on, the others to measure on; plans go through SGLang's file and back.",
        "`any`: an expert's replicas in turn, near or far; `nearest`: own device, else own node, else any.",
    ]
    for path in arguments.traces:
        trace = RoutingTrace.load(path)
        for shape in arguments.topologies.split(","):
            lines += ["", f"## {path.stem}, {shape}", "", *compared(trace, Topology.parse(shape))]
            print("\n".join(lines[-9:]), flush=True)
    if arguments.shift:
        for shape in arguments.topologies.split(","):
            first, other = RoutingTrace.load(arguments.traces[0]), RoutingTrace.load(arguments.shift)
            title = f"## Planned on {arguments.traces[0].stem}, serving {arguments.shift.stem}, {shape}"
            lines += ["", title, "", *shifted(first, other, Topology.parse(shape))]
            print("\n".join(lines[-7:]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
