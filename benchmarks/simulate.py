"""Days of shifting traffic under each policy: every scenario of `grace-moe simulate`, several seeds. Writes a table of Markdown.

    python benchmarks/simulate.py wiki.safetensors chat.safetensors --topology 2x2 --seeds 5

Costs are copies per token and layer, the busiest device and the moves weighed as docs/adapt.md says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grace_moe import RoutingTrace, Topology
from grace_moe.adapt.simulate import SCENARIOS, DayOptions, StreamOptions, run_days


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--topology", default="2x2")
    parser.add_argument("--policies", default="static,grace")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--expert-bytes", type=int, default=DayOptions.expert_bytes)
    parser.add_argument("--copy-bytes", type=int, default=DayOptions.copy_bytes)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    traces = [RoutingTrace.load(path) for path in arguments.traces]
    options = DayOptions(
        stream=StreamOptions(steps=arguments.steps, requests=arguments.requests),
        expert_bytes=arguments.expert_bytes,
        copy_bytes=arguments.copy_bytes,
        seeds=arguments.seeds,
    )
    columns = (
        "scenario",
        "policy",
        "total cost",
        "copies",
        "busiest",
        "experts moved",
        "GB between nodes",
        "of static, mean",
        "worst seed",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    scenarios, policies = arguments.scenarios.split(","), arguments.policies.split(",")
    for day in run_days(traces, Topology.parse(arguments.topology), scenarios, policies, options):
        still = [outcome.total_cost for outcome in day.outcomes["static"]]
        for row in day.rows():
            costs = [outcome.total_cost for outcome in day.outcomes[row["policy"]]]
            ratios = [cost / other for cost, other in zip(costs, still, strict=True)]
            cells = (
                day.scenario,
                f"`{row['policy']}`",
                f"{row['total_cost']:.4f}",
                f"{row['cross_node_copies']:.4f}",
                f"{row['load_max_over_mean']:.3f}",
                f"{row['moved_copies']:,.0f}",
                f"{row['moved_cross_node_bytes'] / 1e9:,.2f}",
                f"{sum(ratios) / len(ratios):.4f}",
                f"{max(ratios):.4f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
