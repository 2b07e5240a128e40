"""Planning beyond one trace and eight nodes: again from a placement, on many nodes, for several datasets. Writes a page in Markdown.

    python benchmarks/scale.py again TRACE... [--topologies 2x2,4x4] [-o page.md]
    python benchmarks/scale.py many [TRACE...] [--topologies 16x2,16x4] [-o page.md]  (without: synthetic)
    python benchmarks/scale.py mixed TRACE TRACE [--topologies 2x2,4x4] [-o page.md]

`again`: planned on a quarter of the requests, then on the next quarter, from that plan and from nothing; measured on the other half.
`many`, `mixed`: planned on half of the requests, measured on the other. Times are of this machine; the ratio of two rows is what counts.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.placement import difference
from grace_moe.trace import mixed, synthetic_trace


def timed(*arguments: object, **options: object) -> tuple[Placement, float]:
    began = time.perf_counter()
    placement = plan(*arguments, **options)  # type: ignore[arg-type]
    return placement, time.perf_counter() - began


def measured(placement: Placement, trace: RoutingTrace) -> str:
    found = evaluate(placement, trace)
    return f"{found.cross_node_copies:.3f} @ {found.load_max_over_mean:.3f}"


def again(traces: list[RoutingTrace], shapes: list[str]) -> Iterator[str]:
    yield "| trace | topology | plan | s | on the requests planned on | on the other half | copies moved | of them to a new node |"
    yield "|---|---|---|---|---|---|---|---|"
    for trace in traces:
        half, other = trace.split_requests()
        first, second = half.split_requests()
        for shape in shapes:
            topology = Topology.parse(shape)
            plan(first, topology, effort=0.01)  # compiled before it is timed
            old, _ = timed(first, topology)
            plan(second, topology, start=old, effort=0.01)
            scratch, from_nothing = timed(second, topology)
            runs = [timed(second, topology, start=old) for _ in range(3)]
            seconds = float(np.median([s for _, s in runs]))
            for name, placement, took in (
                ("the old one", old, ""),
                ("from nothing", scratch, f"{from_nothing:.2f}"),
                ("from the old one", runs[0][0], f"{seconds:.2f} ({from_nothing / seconds:.1f}x)"),
            ):
                moved = difference(placement, old)
                to_move = f"{moved.moved} of {moved.copies}" if took else ""
                yield (
                    f"| {trace.dataset} | {shape} | {name} | {took} | {measured(placement, second)} | {measured(placement, other)} | "
                    f"{to_move} | {int(moved.from_other_nodes.sum()) if took else ''} |"
                )


def many(traces: list[RoutingTrace], shapes: list[str]) -> Iterator[str]:
    yield "| trace | topology | slots / experts | EPLB | EPLB, joint choice | grace | grace, s a layer | layers by load |"
    yield "|---|---|---|---|---|---|---|---|"
    for trace in traces:
        half, other = trace.split_requests()
        for shape in shapes:
            topology = Topology.parse(shape)
            plan(half, topology, effort=0.01)
            by_load, joint = (plan(half, topology, "eplb", replica_choice=choice) for choice in ("wrr", "joint"))
            ours, seconds = timed(half, topology)
            fallen = f"{sum(layer.replica_choice != '' for layer in ours.layers)} of {trace.num_layers}"
            yield (
                f"| {trace.model} {trace.dataset} | {shape} | {ours.slots_total_over_experts:.2f} | {measured(by_load, other)} | "
                f"{measured(joint, other)} | {measured(ours, other)} | {seconds / trace.num_layers:.2f} | {fallen} |"
            )


def several(traces: list[RoutingTrace], shapes: list[str]) -> Iterator[str]:
    halves = [trace.split_requests() for trace in traces]
    yield "| topology | method | planned on | " + " | ".join(f"on {trace.dataset}" for trace in traces) + " |"
    yield "|---|---|---|" + "---|" * len(traces)
    for shape in shapes:
        for method in ("grace", "eplb"):
            for planned_on in [*(half for half, _ in halves), mixed([half for half, _ in halves])]:
                placement = plan(planned_on, Topology.parse(shape), method)
                cells = " | ".join(measured(placement, other) for _, other in halves)
                yield f"| {shape} | {method} | {planned_on.dataset} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("again", "many", "mixed"))
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--topologies")
    parser.add_argument("--every", type=int, default=1, help="Plan every so manieth layer only.")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    traces = [RoutingTrace.load(path) for path in arguments.traces]
    traces = [every_nth_layer(trace, arguments.every) for trace in traces]
    if not traces:
        traces = [synthetic_trace(tokens=50_000, layers=6, experts=256, clusters=16, requests=400, seed=1)]
    rows, default = {"again": (again, "2x2,4x4"), "many": (many, "16x2,16x4"), "mixed": (several, "2x2,4x4")}[arguments.what]
    versions = f"grace-moe {version('grace-moe')}, NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}"
    lines = [
        f"# Planning, {arguments.what}, {date.today().isoformat()}",
        "",
        f"{versions}, 2 shared cores. By `benchmarks/scale.py {arguments.what}`,",
        f"every {arguments.every}. layer, seed 0. Copies of a token between nodes @ load of the busiest device over the mean.",
        "",
    ]
    print("\n".join(lines), flush=True)
    for row in rows(traces, (arguments.topologies or default).split(",")):
        lines.append(row)
        print(row, flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def every_nth_layer(trace: RoutingTrace, step: int) -> RoutingTrace:
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


if __name__ == "__main__":
    main()
