"""Copies and pairs to other nodes by each replica choice of `GRACE_MOE_CHOICE`, for the same slots. Prints a table in Markdown.

    python benchmarks/replica_choice.py TRACE [--topologies 2x2,4x4]

Half of the trace's requests to plan on, half to count on; 1.25 slots an expert. `theirs` is drawn evenly from all replicas for each expert:
vLLM takes one turn for all experts of a token, so that its replicas fall together, and its copies are fewer (docs/engines/vllm.md).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.engines import equalise
from grace_moe.engines.live.replica_choice import POLICIES
from grace_moe.placement import even_weights

REDUNDANCY = 1.25
METHODS = ("eplb", "grace_paper", "grace")


def chosen(placement: Placement, choice: str) -> Placement:
    """The placement under a choice."""
    if choice in POLICIES:
        layers = tuple(replace(layer, replica_choice=POLICIES[choice]) for layer in placement.layers)
    else:
        layers = tuple(
            replace(layer, replica_choice="wrr", replica_weights=even_weights(layer.devices_of_expert), decode_weights=())
            for layer in placement.layers
        )
    return replace(placement, layers=layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--topologies", default="2x2,4x4")
    arguments = parser.parse_args()
    trace = RoutingTrace.load(arguments.trace)
    planned_on, counted_on = trace.split_requests()
    print("| nodes | plan | theirs | near | joint |\n|---|---|---|---|---|")
    for topology in map(Topology.parse, arguments.topologies.split(",")):
        slots = -(-int(trace.num_experts * REDUNDANCY) // topology.num_devices)
        for method in METHODS:
            options = {} if method == "grace_paper" else {"slots_per_device": slots}
            made = plan(planned_on, topology, method=method, **options)
            placement = equalise(made, slots_per_device=slots, trace=planned_on, two_phases=True).placement
            cells = []
            for choice in ("theirs", *POLICIES):
                found = evaluate(chosen(placement, choice), counted_on)
                pairs = found.copies.pairs_cross_node.sum() / counted_on.num_tokens / len(counted_on.layer_ids)
                cells.append(f"{found.cross_node_copies:.3f}, {pairs:.2f}")
            print(f"| {topology.shape} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
