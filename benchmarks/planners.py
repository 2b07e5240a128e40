"""All planning methods on the same requests: half to plan on, half to measure on. Writes a results page in Markdown.

    python benchmarks/planners.py TRACE... [--topologies 2x2,2x4,4x4] [--methods a,b] [--seeds 3] [-o page.md]

Traces are files of `grace-moe record` or `import`; give your own. Figures are means over `--seeds` seeds, with the largest
distance from the mean where seeds matter.
"""

import argparse
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grace_moe import METHODS, RoutingTrace, Topology, compare

COLUMNS = ("cross_node_copies", "intra_node_copies", "load_max_over_mean", "slots_total_over_experts", "plan_seconds")


def measure(trace: RoutingTrace, topology: Topology, methods: tuple[str, ...], seeds: int, redundancy: float) -> dict[str, np.ndarray]:
    """`[seeds, columns]` of each method."""
    found: dict[str, list[list[float]]] = {method: [] for method in methods}
    for seed in range(seeds):
        for row in compare(trace, topology, methods=methods, redundancy=redundancy, seed=seed).rows:
            values = row.to_dict(topology)
            found[row.method].append([float(values[c]) for c in COLUMNS])
    return {method: np.array(rows) for method, rows in found.items()}


def table(found: dict[str, np.ndarray]) -> list[str]:
    lines = ["| method | between nodes | inside nodes | busiest device | slots / experts | plan, s |", "|---|---|---|---|---|---|"]
    for method, values in found.items():
        means, spread = values.mean(axis=0), np.abs(values - values.mean(axis=0)).max(axis=0)
        cells = []
        for i, digits in enumerate((3, 3, 3, 2, 1)):
            text = f"{means[i]:.{digits}f}"
            cells.append(text + (f" ± {spread[i]:.{digits}f}" if i < 3 and spread[i] >= 0.0005 else ""))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--topologies", default="2x2,2x4,4x4")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--redundancy", type=float, default=1.25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    methods = tuple(arguments.methods.split(","))
    seeds = ", ".join(map(str, range(arguments.seeds)))
    lines = [
        f"# Planning methods, {date.today().isoformat()}",
        "",
        f"grace-moe {version('grace-moe')}, NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"2 shared cores. Redundancy {arguments.redundancy} for methods that take one. Seeds {seeds}.",
        "Copies of a token sent between and inside nodes, and the load of the busiest device over the mean, per token and layer, on",
        "requests that were not planned on (every second request of the trace).",
    ]
    for path in arguments.traces:
        trace = RoutingTrace.load(path)
        lines += ["", f"## {trace.model}, {trace.dataset}", ""]
        lines.append(f"{trace.num_tokens:,} tokens, {trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}.")
        for shape in arguments.topologies.split(","):
            lines += ["", f"### {shape}", ""]
            lines += table(measure(trace, Topology.parse(shape), methods, arguments.seeds, arguments.redundancy))
            print("\n".join(lines[-len(methods) - 4 :]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
