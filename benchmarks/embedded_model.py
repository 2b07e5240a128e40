"""How far the embedded model specialises: loads, dead experts, and how many nodes and devices a token reaches.

Records held-out text, plans on one half of the requests and measures on the other (never on the same text).

    python benchmarks/embedded_model.py [--json]
"""

import argparse
import json

import numpy as np

from grace_moe import Topology, evaluate, plan
from grace_moe.embedded import DOMAINS, embedded_model, embedded_texts
from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.recording import record_trace, requests_from_text
from grace_moe.runtime.model.description import load_tokenizer
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.trace import expert_loads, skew

DEAD = 0.05
"""An expert is nearly dead below this share of the mean load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=960)
    arguments = parser.parse_args()
    model = load_whole_model(str(embedded_model()))
    tokenizer = load_tokenizer(str(embedded_model()))
    requests = requests_from_text(list(embedded_texts().values()), tokenizer, tokens_per_request=64, max_requests=arguments.requests)
    options = GenerationOptions(new_tokens=8, batch_size=48, stop_at_eos=False)
    trace, _ = record_trace(model, requests, options, name="embedded OLMoE", dataset="held-out text")
    loads = expert_loads(trace)
    by_domain = [expert_loads(trace.select(trace.requests % len(DOMAINS) == d)) for d in range(len(DOMAINS))]
    shares = np.stack([w / w.sum(axis=1, keepdims=True) for w in by_domain])
    result = {
        "tokens": trace.num_tokens,
        "skew_per_layer": skew(trace).round(2).tolist(),
        "nearly_dead_per_layer": (loads < DEAD * loads.mean(axis=1, keepdims=True)).sum(axis=1).tolist(),
        "load_shared_between_domains_per_layer": {
            f"{DOMAINS[a]} and {DOMAINS[b]}": np.minimum(shares[a], shares[b]).sum(axis=1).round(2).tolist()
            for a in range(len(DOMAINS))
            for b in range(a)
        },
        "placements": [],
    }
    planning_half, measuring_half = trace.split_requests()
    for shape in ("2x2", "2x4"):
        topology = Topology.parse(shape)
        for method in ("linear", "grace_paper"):
            evaluation = evaluate(plan(planning_half, topology, method=method), measuring_half)
            result["placements"].append(
                {
                    "topology": shape,
                    "method": method,
                    "other_nodes_per_token": round(evaluation.cross_node_copies, 3),
                    "other_devices_per_token": round(evaluation.flat_copies, 3),
                    "load_max_over_mean": round(evaluation.load_max_over_mean, 3),
                    "slots_total_over_experts": round(evaluation.slots_total_over_experts, 3),
                }
            )
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name in ("tokens", "skew_per_layer", "nearly_dead_per_layer", "load_shared_between_domains_per_layer"):
        print(f"{name}: {result[name]}")
    for row in result["placements"]:
        print("  ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
