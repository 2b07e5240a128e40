"""Dispatch and combine of one MoE layer over a slow link: pairs (vanilla's traffic), flat and hierarchical, in one run.

Two nodes of two ranks. With the privilege for it, each node is a network namespace and the nodes are joined by a veth pair
that `tc tbf` holds to a rate, so traffic between nodes really crosses a slow link while that inside a node stays on
loopback. Without it, plain loopback, and the table says so. Everything made is removed, also on failure.

    python benchmarks/dispatch.py --rate 200mbit --tokens 4,64,512,1024
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

from slow_link import NODES, RANKS, bytes_on_link, finish, nodes, start

HIDDEN, EXPERTS, TOP_K = 2048, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="200mbit", help="of the link between nodes, as tc writes it")
    parser.add_argument("--tokens", default="4,64,512,1024", help="tokens of each rank, comma-separated")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds; the ways take turns in each")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokens = [int(n) for n in arguments.tokens.split(",")]
    if arguments.rank is not None:
        measure(arguments.rank, tokens, arguments.rounds, arguments.folder)
        return
    with nodes(arguments.rate) as (prefixes, link), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [start(__file__, rank, prefixes[rank * NODES // RANKS], folder) for rank in range(RANKS)]
        finish(ranks)
        show(json.loads((folder / "times.json").read_text()), link)


def measure(rank: int, tokens: list[int], rounds: int, folder: Path) -> None:
    """One rank: the median of each way's rounds, and the bytes that the meter and the link saw."""
    import torch
    import torch.distributed as dist

    from grace_moe.planning import plan
    from grace_moe.runtime.dispatch import AutoDispatcher, FlatDispatcher, HierarchicalDispatcher, Outgoing
    from grace_moe.runtime.dispatch.collectives import TrafficMeter
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.dispatch.route import layer_routes
    from grace_moe.topology import Topology
    from grace_moe.trace import RoutingTrace

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    topology = Topology.parse("2x2")
    meter = TrafficMeter(topology=topology, rank=rank)
    groups = make_groups(topology, timedelta(seconds=300))
    ids = torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(t))[:TOP_K] for t in range(64)])
    trace = RoutingTrace(topk_ids=ids[:, None].numpy().astype("int16"), num_experts=EXPERTS, layer_ids=(0,))
    route = layer_routes(plan(trace, topology, "linear"), rank, seed=0, device=torch.device("cpu"))[0]
    flat, hierarchical = FlatDispatcher(groups=groups, meter=meter), HierarchicalDispatcher(groups=groups, meter=meter)
    results = []
    for count in tokens:
        generator = torch.Generator().manual_seed(rank)
        hidden = torch.randn(count, HIDDEN, generator=generator)
        chosen = torch.rand(count, EXPERTS, generator=generator).topk(TOP_K).indices
        weights = torch.rand(count, TOP_K, generator=generator)
        together = route.outgoing(hidden, chosen, weights, first_token=0)
        devices, slots = together.devices_TK.reshape(-1, 1), together.slots_TK.reshape(-1, 1)
        one_each = Outgoing(
            hidden_TH=hidden.repeat_interleave(TOP_K, 0),
            devices_TK=devices,
            slots_TK=slots,
            weights_TK=weights.reshape(-1, 1),
            slots_width=together.slots_width,
        )
        ways = {"pairs": (flat, one_each), "flat": (flat, together)}
        ways["hierarchical"] = (hierarchical, together)
        ways["auto"] = (AutoDispatcher(groups=groups, meter=meter), together)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        sent, crossed = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
        for round_number in range(rounds + 1):
            for name, (dispatcher, outgoing) in ways.items():
                dist.barrier()
                meter.reset()
                before, began = bytes_on_link(), time.perf_counter()
                received, state = dispatcher.dispatch(outgoing)
                dispatcher.combine(received.hidden_RH, state)
                dist.barrier()
                if round_number:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
                    sent[name], crossed[name] = meter.cross_node_bytes, bytes_on_link() - before
        for name in ways:
            totals = torch.tensor([sent[name], crossed[name] if rank % 2 == 0 else 0])
            dist.all_reduce(totals)
            results.append({"tokens": count, "way": name, "seconds": seconds[name], "sent": int(totals[0]), "link": int(totals[1])})
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def show(results: list[dict], link: str) -> None:
    print(f"# Dispatch and combine of one layer, {date.today()}\n")
    print(f"{platform.machine()}, {os.cpu_count()} cores, 2x2 ranks over gloo, {link}. Hidden {HIDDEN} float32, {EXPERTS} experts,")
    print(f"top-{TOP_K}, uniform routing, contiguous placement; median of rounds (least to most), all ways in turn in one run.\n")
    print("| tokens a rank | way | ms | least to most | against pairs | sent between nodes, MiB | on the link / sent |")
    print("|---|---|---|---|---|---|---|")
    pairs = {r["tokens"]: statistics.median(r["seconds"]) for r in results if r["way"] == "pairs"}
    for r in results:
        median = statistics.median(r["seconds"])
        on_link = f"{r['link'] / r['sent']:.3f}" if r["link"] else "–"
        print(
            f"| {r['tokens']} | {r['way']} | {median * 1e3:.1f} | {min(r['seconds']) * 1e3:.1f} to {max(r['seconds']) * 1e3:.1f} "
            f"| {pairs[r['tokens']] / median:.2f}x | {r['sent'] / 2**20:.2f} | {on_link} |"
        )


if __name__ == "__main__":
    main()
