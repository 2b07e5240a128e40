"""Readings of what papers leave open: each is an option of a method. Writes a results page in Markdown.

    python benchmarks/readings.py TRACE... [--topologies 2x2,4x4] [--every 4] [-o page.md]

Half of the requests plan, the others measure. `--every` takes every n-th layer, for speed. The first row of a method is its default.
"""

import argparse
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace, Topology, evaluate, plan

READINGS = {
    "grace_paper": [
        {},
        {"r": 0.15},
        {"knee": "layer"},
        {"prediction": "printed"},
        {"replica_choice": "wrr"},
        {"replica_choice": "wrr", "prediction": "printed"},
        {"grouping": "controlled"},
        {"grouping": "uniform"},
        {"grouping": "fully"},
        {"replication": "fixed"},
        {"replication": "none"},
    ],
    "occult": [{}, {"seed_rule": "degree"}],
    "eplb": [{}, {"replica_choice": "tar"}],
    "exflow": [{}, {"view": "top1"}, {"starts": 1}],
    "moetuner": [{}, {"flow": "max"}, {"links": "bandwidth"}, {"solver": "greedy"}],
}


def every(trace: RoutingTrace, step: int) -> RoutingTrace:
    """The trace with every `step`-th layer."""
    return RoutingTrace(
        topk_ids=np.ascontiguousarray(trace.topk_ids[:, ::step]),
        num_experts=trace.num_experts,
        layer_ids=trace.layer_ids[::step],
        model=trace.model,
        dataset=trace.dataset,
        request_ids=trace.request_ids,
        phase=trace.phase,
        source=trace.source,
    )


def table(trace: RoutingTrace, topology: Topology) -> list[str]:
    """One row a reading; the least of each method's copies and of its imbalance is bold."""
    planned_on, measured_on = trace.split_requests()
    lines = ["| method | reading | between nodes | busiest device | slots / experts |", "|---|---|---|---|---|"]
    for method, readings in READINGS.items():
        found = [evaluate(plan(planned_on, topology, method, **options), measured_on) for options in readings]
        numbers = [[f"{e.cross_node_copies:.3f}", f"{e.load_max_over_mean:.3f}"] for e in found]
        least = [min(column, key=float) for column in zip(*numbers, strict=True)]
        for options, row, e in zip(readings, numbers, found, strict=True):
            reading = ", ".join(f"{name}={value}" for name, value in options.items()) or "default"
            cells = [f"**{cell}**" if cell == best else cell for cell, best in zip(row, least, strict=True)]
            lines.append(f"| {method} | {reading} | {cells[0]} | {cells[1]} | {e.slots_total_over_experts:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--topologies", default="2x2,4x4")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"# Readings of what papers leave open, {date.today().isoformat()}",
        "",
        f"grace-moe {version('grace-moe')}, NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"2 shared cores. Seed 0, one layer in {arguments.every}.",
        "Copies of a token sent between nodes, and the load of the busiest device over the mean, per layer, on requests that were",
        "not planned on (every second request of the trace). Bold: the least of a method.",
    ]
    for path in arguments.traces:
        trace = every(RoutingTrace.load(path), arguments.every)
        lines += ["", f"## {trace.model}, {trace.dataset}", ""]
        lines.append(f"{trace.num_tokens:,} tokens, {trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}.")
        for shape in arguments.topologies.split(","):
            begun = len(lines)
            lines += ["", f"### {shape}", "", *table(trace, Topology.parse(shape))]
            print("\n".join(lines[begun:]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
