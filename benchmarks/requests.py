"""Requests sent to their experts: `grace+requests` against `grace`, for several orders of arrival. Writes a page of Markdown.

    python benchmarks/requests.py a.safetensors b.safetensors --shape 2x2 --shape 4x4

Traces of one model become one, requests apart. Plans are made on half of each trace's requests, drawn at random, and measured on the
others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe import RoutingTrace, Topology, evaluate, plan
from grace_moe.choice import FIRST_TOKENS
from grace_moe.evaluation import Evaluation, Serving
from grace_moe.trace import concatenate

BURST = 10
"""Requests of one trace that arrive one after another."""
SHUFFLES = 3
"""Draws of an order that is drawn."""


def halves(traces: list[RoutingTrace]) -> tuple[list[RoutingTrace], list[RoutingTrace]]:
    """Half of each trace's requests, and the other half."""
    rng = np.random.default_rng(0)
    planned, measured = [], []
    for trace in traces:
        requests = rng.permutation(np.unique(trace.requests))
        first = np.isin(trace.requests, requests[: len(requests) // 2])
        planned.append(trace.select(first))
        measured.append(trace.select(~first))
    return planned, measured


def arriving(trace: RoutingTrace, order: npt.NDArray[np.int64]) -> RoutingTrace:
    """The trace with its requests in this order."""
    return trace.select(np.concatenate([np.flatnonzero(trace.requests == request) for request in order]))


def orders(parts: list[RoutingTrace]) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Name -> orders of the requests of all parts together; several where they are drawn."""
    sizes = [len(np.unique(part.requests)) for part in parts]
    first = np.cumsum([0, *sizes[:-1]])
    own = [start + np.arange(size) for start, size in zip(first, sizes, strict=True)]
    everything = np.concatenate(own)
    # Requests dealt in turn meet bursts in step: most of a trace's come in on one node. Which one, depends on the trace that begins.
    bursts = [[part[i : i + BURST] for i in range(0, max(sizes), BURST) for part in turn] for turn in (own, own[::-1])]
    return {
        "mixed": [np.random.default_rng(seed).permutation(everything) for seed in range(SHUFFLES)],
        f"bursts of {BURST}": [np.concatenate(blocks) for blocks in bursts],
        "one trace after the other": [everything],
    }


def cell(found: list[Evaluation]) -> str:
    copies = np.mean([one.cross_node_copies for one in found])
    load = np.mean([one.load_max_over_mean for one in found])
    return f"{copies:.3f} @ {load:.3f}"


def table(shape: str, planned_on: RoutingTrace, parts: list[RoutingTrace]) -> None:
    topology = Topology.parse(shape)
    plain = plan(planned_on, topology, redundancy=1.25)
    placed = plan(planned_on, topology, redundancy=1.25, request_placement=True)
    whole = concatenate(parts)
    print(
        f"\n## {shape}\n\n| arrivals | `grace` | `grace+requests` | of it | its plan, nothing placed | of it |\n|---|---|---|---|---|---|"
    )
    for name, drawn in orders(parts).items():
        arrivals = [arriving(whole, order) for order in drawn]
        dealt = [evaluate(plain, trace) for trace in arrivals]
        sent = [evaluate(placed, trace, serving=Serving(first_tokens=FIRST_TOKENS)) for trace in arrivals]
        unsent = [evaluate(placed, trace) for trace in arrivals]
        base = sum(one.cross_node_copies for one in dealt)
        shares = [f"{sum(one.cross_node_copies for one in found) / base:.3f}" for found in (sent, unsent)]
        print(f"| {name} | {cell(dealt)} | {cell(sent)} | {shares[0]} | {cell(unsent)} | {shares[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--shape", action="append")
    arguments = parser.parse_args()
    planned, measured = halves([RoutingTrace.load(path) for path in arguments.traces])
    together = concatenate(planned)
    planned_on = arriving(together, np.random.default_rng(1).permutation(np.unique(together.requests)))
    names = ", ".join(path.stem for path in arguments.traces)
    print(f"# Requests sent to their experts\n\n{names}; {planned_on.num_tokens:,} tokens planned on, the others measured.")
    for shape in arguments.shape or ["2x2", "4x4"]:
        table(shape, planned_on, measured)


if __name__ == "__main__":
    main()
