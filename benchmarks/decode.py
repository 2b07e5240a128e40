"""Distinct active experts of decode batches: what the replica choice of decode saves, and what it costs. Writes a results page in Markdown.

    python benchmarks/decode.py TRACE... [--topologies 2x2,4x4] [--bounds 0.02:0.1,0.05:0.1] [--batch 64] [-o page.md]

Traces are files of `grace-moe record` or `import` with decode tokens; give your own. Half of the requests to plan on, half to measure on. A
bound is the share by which copies between nodes may rise, and that by which the busiest device may, both on the planning half.
"""

import argparse
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.evaluation import Evaluation, Serving
from grace_moe.planning.grace.decode.problem import DecodeBounds
from grace_moe.planning.grace.decode.weights import with_decode_weights
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.trace import order_of_requests

HEADER = ["| method | active experts | between nodes | busiest device | replicas of a layer used |", "|---|---|---|---|---|"]


def in_decode(placement: Placement, trace: RoutingTrace, bounds: DecodeBounds) -> Placement:
    """What `plan(..., decode="experts")` makes of the same layers."""
    planned = PlannedLayers(layers=placement.layers, replica_choice=placement.replica_choice)
    task = PlanningTask(recording=trace, topology=placement.topology)
    sources = order_of_requests(trace)[0] % placement.topology.num_devices
    layers = with_decode_weights(planned, task, sources, bounds).layers
    return Placement(topology=placement.topology, num_experts=placement.num_experts, layers=layers, replica_choice=placement.replica_choice)


def row(name: str, placement: Placement, found: Evaluation, *, choice_of_batch: bool = False) -> str:
    slots = np.mean([sum(map(len, layer.in_decode().devices_of_expert)) for layer in placement.layers])
    used = "by batch" if choice_of_batch else f"{slots:.1f}"
    return f"| {name} | {found.active_experts_max:.2f} | {found.cross_node_copies:.3f} | {found.load_max_over_mean:.3f} | {used} |"


def rows(trace: RoutingTrace, topology: Topology, bounds: list[tuple[float, float]], batch: int) -> list[str]:
    planned_on, measured_on = trace.split_requests()
    ours, theirs = plan(planned_on, topology), plan(planned_on, topology, "eplb")
    lines = [row("grace", ours, evaluate(ours, measured_on))]
    for copies, load in bounds:
        placement = in_decode(ours, planned_on, DecodeBounds(copies=copies, load=load, batch=batch))
        name = f"grace, decode=experts, copies +{copies:.0%}, load +{load:.0%}"
        lines.append(row(name, placement, evaluate(placement, measured_on)))
    lines.append(row("grace+metro", ours, evaluate(ours, measured_on, serving=Serving(policy="metro")), choice_of_batch=True))
    lines.append(row("eplb", theirs, evaluate(theirs, measured_on)))
    lines.append(row("eplb+metro", theirs, evaluate(theirs, measured_on, serving=Serving(policy="metro")), choice_of_batch=True))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--topologies", default="2x2,4x4")
    parser.add_argument("--bounds", default="0.02:0.1,0.05:0.1,0.1:0.2,0.3:0.5")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    bounds = [(float(copies), float(load)) for copies, load in (bound.split(":") for bound in arguments.bounds.split(","))]
    lines = [
        f"# Replicas of decode, {date.today().isoformat()}",
        "",
        f"grace-moe {version('grace-moe')}, NumPy {np.__version__}, Python {platform.python_version()}. Seed 0, redundancy 1.25; "
        f"decode planned for batches of {arguments.batch} tokens.",
    ]
    for path in arguments.traces:
        trace = RoutingTrace.load(path)
        measured = trace.split_requests()[1]
        requests = len(np.unique(measured.requests))
        lines += ["", f"## {trace.model} ({path.stem}): measured on {measured.num_tokens:,} tokens of {requests} requests"]
        for shape in arguments.topologies.split(","):
            lines += ["", f"### {shape}", "", *HEADER, *rows(trace, Topology.parse(shape), bounds, arguments.batch)]
            print(f"{path.stem} {shape} done", flush=True)
    text = "\n".join(lines) + "\n"
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
