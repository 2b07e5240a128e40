"""The cost model against measured layers: all ways of `benchmarks/layer.py` over a slow link, whose topology `grace-moe discover` measures.

    python benchmarks/modelled.py TRACE --rates 60mbit,120mbit,240mbit

Nothing is fitted to the layers: links are those that were discovered on namespaces of the same rate, and experts take so many
microseconds a pair on a device of the rank's own (emulated, as in `layer.py --emulate`). Of our dispatch, the share of pairs that stay on
their node is the overlap. Prints a page in Markdown, misses and all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import date
from itertools import combinations
from pathlib import Path

import layer
from grace_moe import Topology
from grace_moe.cost.flows import PAIRS, TAKEN, Flows
from grace_moe.cost.links import tiers_of
from grace_moe.runtime.dispatch.hierarchical import OVERLAP_PAIRS
from slow_link import RANKS, before_others, clean_up_when_ended, finish, nodes, start

BACKENDS = {"pairs": "vanilla", "flat": "flat", "in turn": "hierarchical", "hierarchical": "hierarchical"}
"""Of each dispatch of layer.py."""
LAYERS = 1
TIE = 0.03
"""Measured times that are nearer than this to each other have no order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rates", default="60mbit,120mbit,240mbit", help="of the link, as tc writes them")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--emulate", type=float, default=200, help="microseconds a pair")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one a line, and no page")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="files of such rows: print their page, run nothing")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        discover(arguments.rank, arguments.folder)
        return
    clean_up_when_ended()
    rows = [json.loads(line) for path in arguments.rows for line in path.read_text().splitlines()]
    if rows:
        show(rows, arguments)
        return
    asked = argparse.Namespace(trace=arguments.trace, tokens=arguments.tokens, layers=LAYERS)
    own = sys.argv[1:]
    measuring = [str(arguments.trace), "--tokens", str(arguments.tokens), "--layers", str(LAYERS), "--emulate", str(arguments.emulate)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layer.prepare(asked, folder)
        for rate in arguments.rates.split(","):
            (folder / "probes").unlink(missing_ok=True)
            sys.argv[1:] = own
            with nodes(rate) as (prefixes, link):
                finish([start(__file__, rank, prefixes[rank * 2 // RANKS], folder) for rank in range(RANKS)])
            sys.argv[1:] = measuring  # the ranks of layer.py take this process's
            measured, _ = layer.run(folder, rate, [way[0] for way in layer.WAYS], arguments.rounds)
            rows += compared(folder, measured, arguments.emulate, rate)
            print(f"{link}: done", file=sys.stderr, flush=True)
    if arguments.json:
        print("\n".join(map(json.dumps, rows)))
    else:
        show(rows, arguments)


def discover(rank: int, folder: Path) -> None:
    """One rank of the discovery; rank 0 leaves `found.json`."""
    before_others()
    from grace_moe.runtime.job.probe import discover_together
    from grace_moe.runtime.job.ranks import joined, leave

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank % (RANKS // 2)))  # as torchrun sets it
    with joined(rendezvous_file=str(folder / "probes")) as member:
        _, topology = discover_together(member, [])
        if rank == 0:
            topology.save(folder / "found.json")
    leave(0)


def compared(folder: Path, measured: list[dict], emulate: float, rate: str) -> list[dict]:
    """A row a way: measured seconds, and modelled ones."""
    import numpy as np

    from grace_moe import Placement, RoutingTrace
    from grace_moe.cost.calibration import Calibration
    from grace_moe.cost.compute import ExpertKernel
    from grace_moe.cost.sizes import ModelSizes
    from grace_moe.cost.step import Setting, step_time
    from grace_moe.evaluation.flows import replay_flows

    topology = Topology.parse(str(folder / "found.json"))
    kernel = ExpertKernel(phase="any", launch_s=0.0, byte_s=0.0, pair_s=emulate * 1e-6, flop_s=0.0, machine="emulated")
    topology = replace(topology, calibration=Calibration(compute=(kernel,)).to_dict())
    shape = json.loads((folder / "trace.json").read_text())
    model = ModelSizes(num_experts=shape["experts"], top_k=shape["k"], hidden_size=2048, expert_size=1024, hidden_element_bytes=4.0)
    placements = [Placement.load(folder / f"{number}.json") for number in range(len(layer.WAYS))]
    widest = max(int(placement.slots_per_device().max()) for placement in placements)  # the ranks' slots are as many in all ways
    rows = []
    for number, (way, result) in enumerate(zip(layer.WAYS, measured, strict=True)):
        placement = placements[number]
        with np.load(folder / f"{number}.npz") as taken:
            ids = [taken[f"arr_{rank}"] for rank in range(RANKS)]
        sources = np.repeat(np.arange(RANKS), [len(some) for some in ids]).astype(np.int32)  # a request a rank, dealt in this order
        trace = RoutingTrace(topk_ids=np.concatenate(ids), num_experts=shape["experts"], layer_ids=placement.layer_ids, request_ids=sources)
        in_parts = way[3] == "hierarchical" and len(sources) * shape["k"] >= OVERLAP_PAIRS * widest * RANKS
        if topology.shape != placement.topology.shape:
            raise SystemExit(f"{rate}: {topology.shape} discovered, not {placement.topology.shape}: the machine is too busy")
        (flows,) = replay_flows(placement, trace, topology)
        overlap = kept_on_node(flows, topology) if in_parts else 0.0
        setting = Setting(model=model, batch_tokens=len(sources), backend=BACKENDS[way[3]], overlap=overlap)
        rows.append(
            {
                "rate": rate,
                "way": way[0],
                "measured": statistics.median(result["seconds"]),
                "modelled": step_time(flows, topology, setting).total,
                "load": os.getloadavg()[0],
                "link": topology.cross_node.shared_bytes_per_s or topology.cross_node.bandwidth_bytes_per_s,
            }
        )
    return rows


def kept_on_node(flows: Flows, topology: Topology) -> float:
    """Share of pairs that are computed on their token's own node: our dispatch computes no others while rows cross between nodes."""
    away = flows.ports[:, PAIRS, TAKEN, :, tiers_of(topology).node + 1 :].sum()
    return float(1 - away / flows.slot_pairs.sum())


def show(rows: list[dict], arguments: argparse.Namespace) -> None:
    print(f"# The cost model against measured layers, {date.today()}\n")
    run = f"{arguments.trace.stem}, {LAYERS} layer, {arguments.tokens} tokens a rank, hidden 2048, float32"
    print(f"`python benchmarks/modelled.py`: {run};")
    print(f"2x2 ranks over gloo on {os.cpu_count()} cores ({platform.machine()}), experts {arguments.emulate:g} us a pair (emulated);")
    print(f"median of {arguments.rounds} rounds. Links are as discovered, nothing is fitted.")
    loads = ", ".join(dict.fromkeys(f"{row['load']:.1f}" for row in rows))
    print(f"Load of the machine in the last minute of each link: {loads}; the ranks came before all other work (`SCHED_RR`).\n")
    print("| link | way | measured, ms | modelled, ms | off by |\n|---|---|---|---|---|")
    for row in rows:
        off = row["modelled"] / row["measured"] - 1
        miss = " **miss**" if abs(off) > 0.15 else ""
        link = f"{row['rate']}, found {row['link'] * 8 / 1e6:.0f}"
        print(f"| {link} | {row['way']} | {row['measured'] * 1e3:.0f} | {row['modelled'] * 1e3:.0f} | {off:+.0%}{miss} |")
    print("\n| link | median error | most | pairs of ways in the measured order |\n|---|---|---|---|")
    for rate in [*dict.fromkeys(row["rate"] for row in rows), "all"]:
        some = [row for row in rows if rate in (row["rate"], "all")]
        errors = [abs(row["modelled"] / row["measured"] - 1) for row in some]
        print(f"| {rate} | {statistics.median(errors):.1%} | {max(errors):.1%} | {' of '.join(map(str, ordered(some)))} |")
    print(f"\nTimes within {TIE:.0%} of each other have no order.")


def ordered(rows: list[dict]) -> tuple[int, int]:
    """How many pairs of ways over one link are modelled in the order in which they were measured, of how many."""
    apart = [
        (a, b)
        for a, b in combinations(rows, 2)
        if a["rate"] == b["rate"] and abs(a["measured"] - b["measured"]) > TIE * max(a["measured"], b["measured"])
    ]
    return sum((a["measured"] < b["measured"]) == (a["modelled"] < b["modelled"]) for a, b in apart), len(apart)


if __name__ == "__main__":
    main()
