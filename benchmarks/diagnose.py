"""Verdicts of `diagnose` against labels. Writes a results page in Markdown.

    python benchmarks/diagnose.py [--out benchmarks/results/diagnose_2cores_DATE.md]

Every trace is drawn with a known structure. `diagnose` sees a part of its requests. The label is what a replay of the others says, of every
plan that there is to choose from (EPLB with and without replicas, grace): worth it, where the best of them saves at least
3% of a modelled layer. A verdict is wrong where it is the opposite of its label; "not enough evidence" is neither.
"""

import argparse
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.evaluation import LEAST_GAIN, diagnose
from grace_moe.evaluation.diagnose import NOT_ENOUGH, NOT_WORTH_IT, WORTH_IT
from grace_moe.evaluation.flows import replay_flows
from grace_moe.trace import synthetic_trace

SEEN, REQUESTS, TOKENS, LAYERS = 800, 1300, 20, 2
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


def parts(skew: float, affinity: float) -> tuple[RoutingTrace, RoutingTrace]:
    """What `diagnose` sees, and what the label is replayed on."""
    trace = synthetic_trace(tokens=REQUESTS * TOKENS, experts=32, top_k=4, layers=LAYERS, requests=REQUESTS, skew=skew, affinity=affinity)
    seen = trace.requests < SEEN
    return trace.select(np.flatnonzero(seen)), trace.select(np.flatnonzero(~seen))


def main() -> None:
    """All replays, and the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path(f"benchmarks/results/diagnose_2cores_{date.today()}.md"))
    out = options.parse_args().out
    rows, counts = [], Counter()
    for skew, affinity in TRACES:
        seen, others = parts(skew, affinity)
        for cluster in CLUSTERS:
            topology = Topology.parse(cluster)
            methods = [("linear", None), ("eplb", 1.0), ("eplb", 1.25), ("grace", 1.25)]
            plans = [plan(seen, topology, method, redundancy=slots) for method, slots in methods]
            replays = [replay_flows(placement, others, topology)[0] for placement in plans]
            half = seen.split_requests()[0]
            halfway = [plan(half, topology, "grace"), plan(half, topology, "eplb", redundancy=1.0)]
            for setting in SETTINGS:
                now, *planned = (step_time(flows, topology, setting).total for flows in replays)
                gain = 1 - min(planned) / now
                found = diagnose(seen, topology, setting, candidates=halfway)
                label = WORTH_IT if gain >= LEAST_GAIN else NOT_WORTH_IT
                outcome = "undecided" if found.verdict == NOT_ENOUGH else "right" if found.verdict == label else "wrong"
                counts[outcome] += 1
                counts[f"{found.verdict}, label {label}"] += 1
                told = f"{setting.phase} {setting.batch:,} {setting.backend}"
                cells = (f"{skew:g}", f"{affinity:g}", cluster, told, f"{gain:.1%}", label, f"{found.gain:.1%}", found.verdict, outcome)
                rows.append(f"| {' | '.join(cells)} |")
                print(rows[-1], flush=True)
    decided = counts["right"] + counts["wrong"]
    summary = [
        f"{len(rows)} replays. Decided: {decided}, right {counts['right']} ({counts['right'] / max(1, decided):.1%}); "
        f"undecided: {counts['undecided']}; right of all {counts['right'] / len(rows):.1%}.",
        f"'Worth it' where it is not: {counts[f'{WORTH_IT}, label {NOT_WORTH_IT}']}.",
    ]
    columns = ("skew", "affinity", "cluster", "served", "best plan saves", "label", "`diagnose` says", "verdict", "")
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    title = f"# Verdicts of `diagnose` against labels\n\n`benchmarks/diagnose.py`, {date.today()}."
    text = "\n".join([f"{title} {' '.join(summary)}\n", head, *rows])
    out.write_text(text + "\n")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
