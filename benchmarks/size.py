"""How long `size` takes: a sweep up to 1,024 devices, and one cluster of as many. Prints a table in Markdown.

    python benchmarks/size.py [--layers 58] [--experts 256] [--tokens 16384]

Sizes are DeepSeek-V3's, on a trace that was drawn. Times are of this machine, best of three for one cluster.
"""

import argparse
import time
from collections.abc import Callable

from grace_moe import Topology
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.evaluation.size import Sweep, size
from grace_moe.trace import synthetic_trace

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Of 8 devices."""


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=58)
    options.add_argument("--experts", type=int, default=256)
    options.add_argument("--tokens", type=int, default=16_384)
    arguments = options.parse_args()
    trace = synthetic_trace(tokens=arguments.tokens, layers=arguments.layers, experts=arguments.experts, requests=256)
    model = ModelSizes(num_experts=arguments.experts, top_k=8, hidden_size=7168, expert_size=2048, weight_bytes=1.0, source="DeepSeek-V3")
    setting = Setting(model=model, backend="deepep_high_throughput")
    base = Topology.parse("1x8:h100-400g")
    full = Sweep(nodes=NODES, links=(0.5, 1.0, 2.0), batches=(1024, 32_768, 262_144))
    one = Sweep(nodes=(NODES[-1],), redundancies=(1.25,))
    size(trace, base, setting, Sweep(nodes=(1,), redundancies=(1.0,)))  # compiled before it is timed
    points = len(full.clusters) * len(full.links) * len(full.batches)
    print(f"{arguments.layers} layers of {arguments.experts} experts, {arguments.tokens:,} tokens\n")
    print("| | seconds |\n|---|---|")
    print(f"| one cluster of {8 * NODES[-1]:,} devices | {min(seconds(lambda: size(trace, base, setting, one)) for _ in range(3)):.2f} |")
    print(f"| {points} points, 8 to {8 * NODES[-1]:,} devices | {seconds(lambda: size(trace, base, setting, full)):.1f} |")


if __name__ == "__main__":
    main()
