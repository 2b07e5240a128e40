"""Days of domains where counters are all there is: how soon a shift is told, what comes back, what moves. Writes rows of Markdown.

    python benchmarks/count_days.py glm-5.2.expert-load.safetensors --pairs books:code_instruct --topology 2x8 --redundancy 1.125

The file holds `expert_load` `[shards, layers, experts]` and, as metadata, `layer_ids`, `shard_domains` and `top_k`. Every second shard of a
domain is seen; the others are measured on. `--what eplb` is for a day long enough for EPLB to re-plan at vLLM's defaults (`--steps 4000`);
`--what harm` serves every scenario, and says what a day costs over one of a plan that stays.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import safe_open

from grace_moe import Topology
from grace_moe.adapt.simulate import SCENARIOS, Day, DayOptions, Following, Policy, StreamOptions, run_load_day
from grace_moe.trace import LoadProfile

WITHIN = 100
"""Steps after the shift, and the last tenth of them is looked at."""


class Follower:
    """What the policy `grace` did, seed by seed."""

    def __init__(self) -> None:
        self.policies: list[Following] = []

    def step(self, policy: Policy) -> None:
        """After each step of any policy."""
        if isinstance(policy, Following) and policy not in self.policies[-1:]:
            self.policies.append(policy)

    def told(self, shift: int) -> str:
        """Steps from the shift to the first look after it, of each seed; and how many looks came before it, where any did."""
        cells = []
        for policy in self.policies:
            steps = [look.step - shift for look in policy.adapter.looks]
            early = sum(step <= 0 for step in steps)
            cells.append(f"{next((step for step in steps if step > 0), 'never')}{f' ({early} before)' if early else ''}")
        return ", ".join(cells)

    @property
    def copies(self) -> int:
        """Slots in use, all layers."""
        return int(self.policies[0].serving.slots_per_device().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", required=True, help="Such as books:web,web:math.")
    parser.add_argument("--topology", default="2x8")
    parser.add_argument("--redundancy", type=float, default=1.125)
    parser.add_argument("--tokens-per-device", type=int, default=512)
    parser.add_argument("--expert-bytes", type=int, default=3 * 6144 * 2048 * 2)
    parser.add_argument("--copy-bytes", type=int, default=6144 * 4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--what", choices=tuple(TABLES), default="shift")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="of --what harm")
    arguments = parser.parse_args()
    topology = Topology.parse(arguments.topology)
    stream = StreamOptions(steps=arguments.steps, requests=arguments.tokens_per_device * topology.num_devices // 8)
    options = DayOptions(
        stream=stream,
        redundancy=arguments.redundancy,
        expert_bytes=arguments.expert_bytes,
        copy_bytes=arguments.copy_bytes,
        seeds=arguments.seeds,
    )
    for pair in arguments.pairs.split(","):
        profiles, top_k = shards_of(arguments.file, pair.split(":"))
        for scenario in arguments.scenarios.split(",") if arguments.what == "harm" else ("shift",):
            follower, began = Follower(), time.process_time()
            policies, cells = TABLES[arguments.what]
            day = run_load_day(profiles, topology, scenario, policies, options, top_k=top_k, on_step=follower.step)
            took = f"{time.process_time() - began:.0f}"
            for row in cells(day, follower):
                print(f"| {pair.replace(':', ' to ')} | {topology.shape} | {scenario} | {row} | {took} |", flush=True)


def shards_of(path: Path, domains: list[str]) -> tuple[list[LoadProfile], int]:
    """The shards of some domains, in their order, and the experts that a token chooses."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        loads = file.get_tensor("expert_load").astype(np.int64)
    of_shard, layer_ids = json.loads(metadata["shard_domains"]), tuple(json.loads(metadata["layer_ids"]))
    profiles = [
        LoadProfile(loads=shard, layer_ids=layer_ids, dataset=domain)
        for domain in domains
        for shard, its in zip(loads, of_shard, strict=True)
        if its == domain
    ]
    return profiles, int(metadata["top_k"])


def after_shift(day: Day, follower: Follower) -> list[str]:
    """Told after, busiest of static, ours and a fresh plan, gain back, copies moved: the last two after 50 and 100 steps."""
    shift = -(-len(day.outcomes["grace"][0].cost_of_steps) // 4)
    cells = []
    for until in (WITHIN // 2, WITHIN):
        window = slice(shift + until - WITHIN // 10, shift + until)
        static, ours, fresh = (
            np.mean([outcome.cost_of_steps[window] for outcome in day.outcomes[name]]) for name in ("static", "grace", "oracle")
        )
        moved = np.mean([sum(outcome.moved_in_steps[: shift + until]) for outcome in day.outcomes["grace"]]) / follower.copies
        cells.append(f"{1 + ours:.3f} | {(static - ours) / (static - fresh):.1%} | {moved:.1%}")
    return [f"{follower.told(shift)} | {1 + static:.3f} | {1 + fresh:.3f} | {' | '.join(cells)}"]


def against_eplb(day: Day, follower: Follower) -> list[str]:
    """Of each seed: busiest device, copies moved, GB between nodes and stalled seconds of EPLB and ours, and ours of its bytes."""
    rows = []
    for seed, (eplb, ours) in enumerate(zip(day.outcomes["eplb"], day.outcomes["grace"], strict=True)):
        cells = [
            f"{one.load_max_over_mean:.3f} | {one.moved_copies:,} | {one.moved_cross_node_bytes / 1e9:,.0f} | {one.stall_seconds:.1f}"
            for one in (eplb, ours)
        ]
        rows.append(f"{seed} | {' | '.join(cells)} | {ours.moved_cross_node_bytes / max(1, eplb.moved_cross_node_bytes):.1%}")
    return rows


def over_static(day: Day, follower: Follower) -> list[str]:
    """Copies moved, mean of the seeds, and what each seed costs over one day of a plan that stays, moves included."""
    days = list(zip(day.outcomes["static"], day.outcomes["grace"], strict=True))
    moved = np.mean([ours.moved_copies for _, ours in days])
    return [f"{moved:,.0f} | {' | '.join(f'{ours.total_cost / static.total_cost:.4f}' for static, ours in days)}"]


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Day, Follower], list[str]]]] = {
    "shift": (("static", "grace", "oracle"), after_shift),
    "eplb": (("eplb", "grace"), against_eplb),
    "harm": (("static", "grace"), over_static),
}
"""What is asked -> policies, and the rows of a day."""


if __name__ == "__main__":
    main()
