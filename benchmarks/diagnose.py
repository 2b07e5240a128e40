"""Verdicts of `diagnose` against labels. Writes a results page in Markdown.

    python benchmarks/diagnose.py [--seeds 1,2] [--out benchmarks/results/diagnose_2cores_DATE.md]

Every trace is drawn with a known structure: 60 replays a seed. `diagnose` sees a part of its requests. The label is what a replay of the
others says, of every plan that there is to choose from (EPLB with and without replicas, grace, and those that `diagnose` judged): worth
it, where the best of them saves at least 3% of a modelled layer. A verdict is wrong where it is the opposite of its label; "not enough
evidence" is neither.

An interval is right where it has what the judged plans save on the others. They are not many more than those that are seen, so that a right
95% interval has it less often: in 86% where both vary alike.
"""

import argparse
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.evaluation import LEAST_GAIN, diagnose
from grace_moe.evaluation.diagnose import NOT_ENOUGH, NOT_WORTH_IT, WORTH_IT
from grace_moe.evaluation.flows import replay_flows
from grace_moe.placement import Placement
from grace_moe.trace import synthetic_trace

SEEN, REQUESTS, TOKENS, LAYERS = 3000, 7000, 20, 1
"""Requests that `diagnose` sees, requests in all, and tokens of each."""
MODEL = ModelSizes(
    num_experts=32, top_k=4, hidden_size=4096, expert_size=1536, weight_bytes=1.0, moe_layers=LAYERS, source="32 experts of 18.9 MB"
)
TRACES = [(0.0, 0.0), (0.0, 0.8), (0.4, 0.0), (1.0, 0.0), (1.0, 0.8)]
CLUSTERS = ["1x8:h100-400g", "2x4:h100-400g", "2x4:a100-25g"]
SETTINGS = [
    Setting(model=MODEL, batch_tokens=65_536, backend="hierarchical"),
    Setting(model=MODEL, batch_tokens=65_536, backend="deepep_high_throughput", overlap=1.0),
    Setting(model=MODEL, phase="decode", batch_tokens=8192, backend="deepep_low_latency"),
    Setting(model=MODEL, phase="decode", batch_tokens=64, backend="deepep_low_latency"),
]
METHODS = [("linear", None), ("eplb", 1.0), ("eplb", 1.25), ("grace", 1.25)]
"""What the label chooses from, and the redundancy of each; the first is what is now."""


def parts(skew: float, affinity: float, seed: int) -> tuple[RoutingTrace, RoutingTrace]:
    """What `diagnose` sees, and what the label is replayed on."""
    structure = {"experts": 32, "top_k": 4, "layers": LAYERS, "skew": skew, "affinity": affinity}
    trace = synthetic_trace(tokens=REQUESTS * TOKENS, requests=REQUESTS, seed=seed, **structure)
    seen = trace.requests < SEEN
    return trace.select(np.flatnonzero(seen)), trace.select(np.flatnonzero(~seen))


def remembered(planner: Callable[..., Placement]) -> Callable[..., Placement]:
    """The planner, with every plan made once: what is served doesn't change it."""
    made: dict[object, Placement] = {}

    def planned(trace: RoutingTrace, topology: Topology, method: str, **options: object) -> Placement:
        key = (trace.topk_ids.tobytes(), topology.source, method, tuple(sorted(options.items())))
        if key not in made:
            made[key] = planner(trace, topology, method, **options)
        return made[key]

    return planned


def replays(skew: float, affinity: float, seed: int, counts: Counter[str]) -> Iterator[str]:
    """A row for each cluster and setting."""
    seen, others = parts(skew, affinity, seed)
    for cluster in CLUSTERS:
        topology = Topology.parse(cluster)
        plans = [replay_flows(plan(seen, topology, method, redundancy=slots), others)[0] for method, slots in METHODS]
        for setting in SETTINGS:
            now, *planned = (step_time(flows, topology, setting).total for flows in plans)
            found = diagnose(seen, topology, setting)
            saved = now - float(np.mean([step_time(replay_flows(p, others)[0], topology, setting).total for p in found.plans]))
            gain = max(1 - min(planned) / now, saved / now)
            label = WORTH_IT if gain >= LEAST_GAIN else NOT_WORTH_IT
            outcome = "undecided" if found.verdict == NOT_ENOUGH else "right" if found.verdict == label else "wrong"
            low, high = found.saved
            counts.update((outcome, f"{found.verdict}, label {label}"))
            counts["covered"] += low <= saved <= high
            told = f"{setting.phase} {setting.batch:,} {setting.backend}"
            interval = f"{low / now:.1%} to {high / now:.1%}"
            cells = (
                seed,
                f"{skew:g}",
                f"{affinity:g}",
                cluster,
                told,
                f"{gain:.1%}",
                label,
                f"{saved / now:.1%}",
                interval,
                found.verdict,
                outcome,
            )
            yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """All replays, and the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", default="1,2", help="of the traces")
    options.add_argument("--out", type=Path, default=Path(f"benchmarks/results/diagnose_2cores_{date.today()}.md"))
    arguments = options.parse_args()
    importlib.import_module("grace_moe.evaluation.diagnose").plan = remembered(plan)
    rows: list[str] = []
    counts: Counter[str] = Counter()
    for seed in map(int, arguments.seeds.split(",")):
        for skew, affinity in TRACES:
            for row in replays(skew, affinity, seed, counts):
                rows.append(row)
                print(row, flush=True)
    decided = counts["right"] + counts["wrong"]
    summary = [
        f"{len(rows)} replays, seeds {arguments.seeds}. Right: {counts['right']} ({counts['right'] / len(rows):.1%}); "
        f"wrong: {counts['wrong']}, undecided: {counts['undecided']}; right of the decided {counts['right'] / max(1, decided):.1%}.",
        f"'Worth it' where it is not: {counts[f'{WORTH_IT}, label {NOT_WORTH_IT}']}.",
        f"95% intervals that have what the judged plans save on other requests: {counts['covered'] / len(rows):.1%}.",
    ]
    columns = (
        "seed",
        "skew",
        "affinity",
        "cluster",
        "served",
        "best plan saves",
        "label",
        "judged plans save",
        "95% interval",
        "verdict",
        "",
    )
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    title = f"# Verdicts of `diagnose` against labels\n\n`benchmarks/diagnose.py`, {date.today()}."
    title += f" {SEEN:,} requests of {TOKENS} tokens are seen, {REQUESTS - SEEN:,} are not."
    arguments.out.write_text("\n".join([f"{title} {' '.join(summary)}\n", head, *rows]) + "\n")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
