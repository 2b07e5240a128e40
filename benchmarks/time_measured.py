"""Plans for time against plans for copies, measured: both through the real dispatch between network namespaces, and modelled by `cost`.

    python benchmarks/time_measured.py TRACE [--cases "slow node,bad pair"]

Plans are made on one half of the requests and run on a batch of the other, all in one run, round by round. Every rank is in a namespace of
its own (benchmarks/namespace_clusters.py). Experts are emulated, as in `layer.py --emulate`: a rank's device takes so many microseconds a
pair, by its own speed, and in decode no less than so many an expert. Links are as they were built: nothing is fitted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

import layer
from grace_moe import Placement, RoutingTrace, Topology, plan
from grace_moe.cost.calibration import Calibration
from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.evaluation.flows import replay_flows
from grace_moe.evaluation.serving import sources
from grace_moe.topology import Link
from made_clusters import Cluster
from namespace_clusters import built
from slow_link import clean_up_when_ended, finish, start

PAYLOAD = 0.955
"""Of a link's rate; the rest is headers."""
LATENCY_S = 1e-4
PAIR_S = 200e-6
HIDDEN, INTERMEDIATE, ELEMENT_BYTES = 2048, 1024, 4.0
PLANS = ("copies", "time", "as if equal")
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cluster, and what is served on it."""

    name: str
    shape: str
    cluster: Cluster
    speeds: tuple[float, ...]
    """Of each device."""
    phase: str = "prefill"
    tokens: int = 192
    """Of a rank."""
    read_s: float = 0.0
    """What a device takes at the least for an expert that has any pair."""


NODES_OF_TWO = ((0, 1), (2, 3))
CASES = (
    Case(
        name="slow node",
        shape="3x1",
        cluster=Cluster(partitions=(((0, 1), (2,)), ((0, 1, 2),)), rates=(40 * MB, 8 * MB), bad=None),
        speeds=(1.0, 1.0, 0.25),
    ),
    Case(
        name="bad pair",
        shape="4x1",
        cluster=Cluster(partitions=(((0, 1, 2, 3),),), rates=(25 * MB,), bad=(0, 1, 25 * MB / 8)),
        speeds=(1.0,) * 4,
    ),
    Case(
        name="slow links",
        shape="2x2",
        cluster=Cluster(partitions=(NODES_OF_TWO, ((0, 1, 2, 3),)), rates=(80 * MB, 10 * MB), bad=None),
        speeds=(1.0,) * 4,
    ),
    Case(
        name="fast links",
        shape="2x2",
        cluster=Cluster(partitions=(NODES_OF_TWO, ((0, 1, 2, 3),)), rates=(80 * MB, 40 * MB), bad=None),
        speeds=(1.0,) * 4,
    ),
    Case(
        name="decode",
        shape="1x4",
        cluster=Cluster(partitions=(((0, 1, 2, 3),),), rates=(80 * MB,), bad=None),
        speeds=(1.0,) * 4,
        phase="decode",
        tokens=8,
        read_s=4e-3,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--layers", type=int, default=2, help="of the trace, spread over it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one a line, and no page")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="files of such rows: print their page, run nothing")
    arguments = parser.parse_args()
    clean_up_when_ended()
    rows = [json.loads(line) for path in arguments.rows for line in path.read_text().splitlines()]
    for case in CASES:
        if not arguments.rows and case.name in arguments.cases.split(","):
            rows.append(measured(case, arguments))
            print(json.dumps(rows[-1]), file=sys.stdout if arguments.json else sys.stderr, flush=True)
    if not arguments.json:
        show(rows, arguments)


def topology_of(case: Case) -> Topology:
    """The cluster as it is built: links without their headers, speeds, and a device that takes `PAIR_S` a pair."""
    topology = Topology.parse(case.shape)
    rate = PAYLOAD * case.cluster.bandwidth()
    rate[np.isinf(rate)] = PAYLOAD * max(case.cluster.rates)
    node = topology.node_of_device
    inside = Link(bandwidth_bytes_per_s=PAYLOAD * case.cluster.rates[0], latency_s=LATENCY_S)
    across = Link(
        bandwidth_bytes_per_s=PAYLOAD * case.cluster.rates[-1],
        latency_s=LATENCY_S,
        shared_bytes_per_s=PAYLOAD * case.cluster.rates[-1] if len(node) > topology.num_nodes > 1 else None,
    )
    kernel = ExpertKernel(phase="any", launch_s=0.0, expert_s=case.read_s, byte_s=0.0, pair_s=PAIR_S, flop_s=0.0, machine="emulated")
    uneven = topology.num_nodes > 1 and len({rate[a, b] for a in range(len(node)) for b in range(a) if node[a] != node[b]}) > 1
    speeds = iter(case.speeds)
    return replace(
        topology,
        nodes=tuple(replace(n, devices=tuple(replace(d, relative_speed=next(speeds)) for d in n.devices)) for n in topology.nodes),
        intra_node=inside,
        cross_node=across,
        bandwidth=tuple(map(tuple, rate.tolist())) if uneven else None,
        calibration=Calibration(compute=(kernel,)).to_dict(),
    )


def measured(case: Case, arguments: argparse.Namespace) -> dict:
    """Both plans' layers, run and modelled."""
    whole = RoutingTrace.load(arguments.trace)
    layers = np.linspace(0, whole.num_layers - 1, arguments.layers + 2).astype(int)[1:-1]
    trace = replace(whole, topk_ids=whole.topk_ids[:, layers], layer_ids=tuple(whole.layer_ids[i] for i in layers), topk_weights=None)
    planning, running = trace.split_requests()
    topology = topology_of(case)
    ranks = topology.num_devices
    model = ModelSizes(
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        hidden_size=HIDDEN,
        expert_size=INTERMEDIATE,
        hidden_element_bytes=ELEMENT_BYTES,
    )
    setting = Setting(model=model, phase=case.phase, batch_tokens=case.tokens * ranks)
    plans = {"copies": plan(planning, topology), "time": plan(planning, topology, setting=setting)}
    if len(set(case.speeds)) > 1:
        plans["as if equal"] = replace(plan(planning, Topology.parse(case.shape)), topology=topology)
    source = sources(running, ranks)
    taken = []
    for rank in range(ranks):
        mine = np.flatnonzero(source == rank)
        taken.append(mine[np.linspace(0, len(mine) - 1, case.tokens).round().astype(int)])
    batch = replace(
        running,
        topk_ids=running.topk_ids[np.concatenate(taken)],
        request_ids=np.repeat(np.arange(ranks, dtype=np.int32), case.tokens),
        phase=None,
    )
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), case, arguments, plans, batch)
    row = {"case": case.name, "cluster": words(case), "same": plans["copies"].layers == plans["time"].layers, "load": os.getloadavg()[0]}
    for (kind, placed), result in zip(plans.items(), found, strict=True):
        (flows,) = replay_flows(placed, batch, topology)
        row[kind] = {"seconds": result["seconds"], "modelled": step_time(flows, topology, setting).total}
    return row


def run(folder: Path, case: Case, arguments: argparse.Namespace, plans: dict[str, Placement], batch: RoutingTrace) -> list[dict]:
    """The ranks of `layer.py`, with these plans."""
    (folder / "trace.json").write_text(json.dumps({"experts": batch.num_experts, "k": batch.top_k}))
    for number, (kind, placed) in enumerate(plans.items()):
        placed.save(folder / f"{number}.json")
        np.savez(folder / f"{number}.npz", *np.split(batch.topk_ids, len(case.speeds)))
        (folder / f"{number}.facts").write_text(json.dumps({"name": kind}))
    layer.write_job(folder, [(number, kind, "in turn") for number, kind in enumerate(plans)], arguments.rounds, case.read_s)
    own = sys.argv[1:]
    sys.argv[1:] = [str(arguments.trace), "--layers", str(arguments.layers), "--emulate", str(PAIR_S * 1e6)]  # what the ranks take
    try:
        with built(case.cluster) as names:
            prefixes = [["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=eth"] for name in names]
            finish([start(layer.__file__, rank, prefix, folder) for rank, prefix in enumerate(prefixes)])
    finally:
        sys.argv[1:] = own
    return json.loads((folder / "times.json").read_text())


def words(case: Case) -> str:
    """The cluster, for a table."""
    rates = " and ".join(f"{rate / MB:.0f}" for rate in case.cluster.rates)
    told = f"{case.shape}, {rates} MB/s"
    if len(set(case.speeds)) > 1:
        told += f", speeds {', '.join(f'{speed:g}' for speed in case.speeds)}"
    if case.cluster.bad is not None:
        told += f", one pair {case.cluster.bad[2] / MB:.1f} MB/s"
    return told


def show(rows: list[dict], arguments: argparse.Namespace) -> None:
    loads = ", ".join(f"{row['load']:.0f}" for row in rows)
    print(f"# Plans for time, measured, {date.today()}\n")
    print(f"`python benchmarks/time_measured.py`: {arguments.trace.stem}, {arguments.layers} layers, hidden {HIDDEN}, float32;")
    print(f"gloo between namespaces on {os.cpu_count()} cores ({platform.machine()}), a rank each; hierarchical dispatch in turn;")
    print(
        f"experts {PAIR_S * 1e6:g} us a pair over a device's speed (emulated), in decode at least {CASES[-1].read_s * 1e3:g} ms an expert."
    )
    print(
        f"Median of {arguments.rounds} rounds. Links are as built, nothing is fitted. Load of the machine: {loads}; the ranks came before"
    )
    print("all other work (`SCHED_RR`).\n")
    print("| regime | cluster | copies, ms (modelled) | time, ms (modelled) | time / copies, measured | modelled | time / as if equal |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{1e3 * statistics.median(row[kind]['seconds']):.1f} ({1e3 * row[kind]['modelled']:.1f})" for kind in PLANS[:2]]
        equal = ratio(row, "as if equal") if "as if equal" in row else ""
        modelled = f"{row['time']['modelled'] / row['copies']['modelled']:.3f}" + " (the same plan)" * row["same"]
        print(f"| {row['case']} | {row['cluster']} | {' | '.join(cells)} | {ratio(row, 'copies')} | {modelled} | {equal} |")
    errors = [abs(row[kind]["modelled"] / statistics.median(row[kind]["seconds"]) - 1) for row in rows for kind in PLANS if kind in row]
    print(f"\nModelled times are off by {statistics.median(errors):.1%} (median), {max(errors):.1%} (most), of {len(errors)}.")
    print("Ratios are medians of the rounds' own, least to most in brackets.")


def ratio(row: dict, kind: str) -> str:
    """Time of the plan for time over another's, round by round."""
    each = [ours / other for ours, other in zip(row["time"]["seconds"], row[kind]["seconds"], strict=True)]
    return f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"


if __name__ == "__main__":
    main()
