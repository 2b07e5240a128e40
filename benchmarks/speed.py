"""How long planning takes: `grace` beside EPLB in the same process, on synthetic routing of large models; and the most memory taken.

python benchmarks/speed.py [--sizes 48x128@4x4,58x256@8x8] [--tokens 50000]
"""

import argparse
import os
import platform
import resource
import time
from datetime import date

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.trace import synthetic_trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="48x128@4x4,58x256@8x8", help="layers x experts @ topology, comma-separated")
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    plan(trace_of(2, 16, 400, 20), Topology.parse("2x2"))  # compiles
    print(f"# Planning time, {date.today()}\n")
    print(f"`python benchmarks/speed.py`: {platform.machine()}, {os.cpu_count()} cores; synthetic routing, {arguments.tokens:,} tokens of")
    print(f"{arguments.requests} requests, top-8. Memory is the process's most so far, the trace included.\n")
    print("| layers x experts | topology | grace, s | EPLB, s | memory, GiB |\n|---|---|---|---|---|")
    for size in arguments.sizes.split(","):
        shape, _, cluster = size.partition("@")
        layers, experts = map(int, shape.split("x"))
        trace, topology, seconds = trace_of(layers, experts, arguments.tokens, arguments.requests), Topology.parse(cluster), []
        for method in ("grace", "eplb"):
            began = time.perf_counter()
            plan(trace, topology, method)
            seconds.append(time.perf_counter() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {shape} | {cluster} | {seconds[0]:.1f} | {seconds[1]:.1f} | {memory:.2f} |", flush=True)


def trace_of(layers: int, experts: int, tokens: int, requests: int) -> RoutingTrace:
    clusters = max(2, experts // 8)
    return synthetic_trace(
        tokens=tokens, layers=layers, experts=experts, top_k=8, clusters=clusters, affinity=0.6, skew=0.8, requests=requests, seed=0
    )


if __name__ == "__main__":
    main()
