"""Dispatch and combine of one layer as work grows: tokens a rank, experts, ranks; pairs (vanilla's traffic), flat and hierarchical.

Each shape is nodes x ranks, every node a network namespace behind a slow link (`slow_link.py`). Uniform routing and a contiguous
placement: no plan helps, this is the dispatch alone. All ways take turns in one run.

    python benchmarks/curves.py --shape 2x2 --tokens 16,64,256,1024,4096 --experts 64 --json curves.jsonl
    python benchmarks/curves.py --show curves.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

from slow_link import finish, nodes, start

HIDDEN, TOP_K = 2048, 8
FLAT, HIERARCHICAL, PAIRS = "flat", "hierarchical", "pairs"
EVEN = 0.1
"""Closer than this is as fast as each other: about the spread of the rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2x2", help="nodes x ranks of each")
    parser.add_argument("--rate", default="500mbit", help="of each node's link, as tc writes it")
    parser.add_argument("--tokens", default="16,64,256,1024", help="tokens of each rank, comma-separated")
    parser.add_argument("--experts", default="64", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=4, help="for each point; at least two rounds, at most nine")
    parser.add_argument("--json", type=Path, help="append the results to a file, one line each")
    parser.add_argument("--show", type=Path, help="only print the page of such a file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.show:
        show([json.loads(line) for line in arguments.show.read_text().splitlines()])
        return
    if arguments.rank is not None:
        measure(arguments)
        return
    count, each = (int(n) for n in arguments.shape.split("x"))
    with nodes(arguments.rate, count) as (prefixes, link), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish([start(__file__, rank, prefixes[rank // each], folder) for rank in range(count * each)])
        results = [r | {"link": link} for r in json.loads((folder / "times.json").read_text())]
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(r) + "\n" for r in results)
    show(results)


def measure(arguments: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from grace_moe import RoutingTrace, Topology, plan
    from grace_moe.runtime.dispatch import FlatDispatcher, HierarchicalDispatcher, Outgoing
    from grace_moe.runtime.dispatch.collectives import TrafficMeter
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.dispatch.route import layer_routes

    torch.set_num_threads(1)
    rank, topology = arguments.rank, Topology.parse(arguments.shape)
    dist.init_process_group("gloo", init_method=f"file://{arguments.folder}/rendezvous", rank=rank, world_size=topology.num_devices)
    meter = TrafficMeter(topology=topology, rank=rank)
    groups = make_groups(topology, timedelta(seconds=300))
    flat, hierarchical = FlatDispatcher(groups=groups, meter=meter), HierarchicalDispatcher(groups=groups, meter=meter)
    results = []
    for experts in (int(n) for n in arguments.experts.split(",")):
        ids = torch.stack([torch.randperm(experts, generator=torch.Generator().manual_seed(t))[:TOP_K] for t in range(64)])
        trace = RoutingTrace(topk_ids=ids[:, None].numpy().astype("int16"), num_experts=experts, layer_ids=(0,))
        route = layer_routes(plan(trace, topology, "linear"), rank, seed=0, device=torch.device("cpu"))[0]
        for tokens in (int(n) for n in arguments.tokens.split(",")):
            generator = torch.Generator().manual_seed(rank)
            hidden = torch.randn(tokens, HIDDEN, generator=generator)
            chosen = torch.rand(tokens, experts, generator=generator).topk(TOP_K).indices
            weights = torch.rand(tokens, TOP_K, generator=generator)
            together = route.outgoing(hidden, chosen, weights, first_token=0)
            devices, slots = together.devices_TK.reshape(-1, 1), together.slots_TK.reshape(-1, 1)
            one_each = Outgoing(
                hidden_TH=hidden.repeat_interleave(TOP_K, 0),
                devices_TK=devices,
                slots_TK=slots,
                weights_TK=weights.reshape(-1, 1),
                slots_width=together.slots_width,
            )
            ways = {PAIRS: (flat, one_each), FLAT: (flat, together), HIERARCHICAL: (hierarchical, together)}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            sent = torch.zeros(len(ways), dtype=torch.int64)
            spent, rounds = 0.0, -1  # the first warms up
            while rounds < 2 or (spent < arguments.seconds and rounds < 9):
                for number, (name, (dispatcher, outgoing)) in enumerate(ways.items()):
                    dist.barrier()
                    meter.reset()
                    began = time.perf_counter()
                    received, state = dispatcher.dispatch(outgoing)
                    dispatcher.combine(received.hidden_RH, state)
                    dist.barrier()
                    if rounds >= 0:
                        seconds[name].append(time.perf_counter() - began)
                        sent[number] = meter.cross_node_bytes
                took = torch.tensor(sum(s[-1] for s in seconds.values()) if rounds >= 0 else 0.0)
                dist.all_reduce(took, dist.ReduceOp.MAX)  # all ranks stop at the same round
                spent, rounds = spent + float(took), rounds + 1
            dist.all_reduce(sent)
            point = {"shape": arguments.shape, "experts": experts, "tokens": tokens}
            results.append(point | {"seconds": seconds, "sent": dict(zip(ways, sent.tolist(), strict=True))})
    if rank == 0:
        (arguments.folder / "times.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def show(results: list[dict]) -> None:
    print(f"# Dispatch and combine as work grows, {date.today()}\n")
    print(f"`python benchmarks/curves.py`: {platform.machine()}, {os.cpu_count()} cores, ranks over gloo, each node a network namespace;")
    print(f"{', '.join(dict.fromkeys(r['link'] for r in results))}. Hidden {HIDDEN} float32, top-{TOP_K}, uniform routing,")
    print("contiguous placement. Milliseconds, median (least to most); all ways in turn in one run. MiB: handed to other nodes.\n")
    columns = ("nodes x ranks", "experts", "tokens a rank", PAIRS, FLAT, HIERARCHICAL, "flat / hier.", "pairs / hier.", "MiB")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for r in results:
        medians = {name: statistics.median(s) for name, s in r["seconds"].items()}
        cells = [f"{1e3 * medians[n]:.1f} ({1e3 * min(s):.1f} to {1e3 * max(s):.1f})" for n, s in r["seconds"].items()]
        ratios = [f"{medians[n] / medians[HIERARCHICAL]:.2f}x" for n in (FLAT, PAIRS)]
        sent = ", ".join(f"{b / 2**20:.2f}" for b in r["sent"].values())
        print("| " + " | ".join([r["shape"], str(r["experts"]), str(r["tokens"]), *cells, *ratios, sent]) + " |")
    print()
    for shape, experts in dict.fromkeys((r["shape"], r["experts"]) for r in results):
        mine = sorted((r for r in results if (r["shape"], r["experts"]) == (shape, experts)), key=lambda r: r["tokens"])
        print(f"- {shape}, {experts} experts: {crossover(mine)}")


def crossover(curve: list[dict]) -> str:
    """Where flat and hierarchical take equally long, between points by the logarithm of tokens."""
    flat, hierarchical = ([statistics.median(r["seconds"][name]) for r in curve] for name in (FLAT, HIERARCHICAL))
    gains = [(math.log(r["tokens"]), math.log(f / h)) for r, f, h in zip(curve, flat, hierarchical, strict=True)]
    settled = next((i for i in range(len(gains)) if all(abs(gain) < math.log(1 + EVEN) for _, gain in gains[i:])), None)
    if settled is not None:
        before = f"; {FLAT if gains[settled - 1][1] < 0 else HIERARCHICAL} is faster below" if settled else ""
        return f"within {EVEN:.0%} of each other from {curve[settled]['tokens']} tokens a rank on{before}"
    if all(gain > 0 for _, gain in gains):
        return f"hierarchical is faster from {curve[0]['tokens']} tokens a rank, the fewest measured, on"
    if all(gain <= 0 for _, gain in gains):
        return f"flat is faster up to {curve[-1]['tokens']} tokens a rank, the most measured"
    for (x0, y0), (x1, y1) in pairwise(gains):
        if y0 <= 0 < y1:
            return f"even at about {math.exp(x0 - y0 * (x1 - x0) / (y1 - y0)):.0f} tokens a rank; flat is faster below, hierarchical above"
    return "hierarchical is faster for few tokens, flat for many"


if __name__ == "__main__":
    main()
