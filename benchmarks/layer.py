"""One MoE layer, whole, over a slow link: what each part of the method saves, from Transformers' own all-to-all to the joint plan.

Replays the routing of a trace through the real runtime, with random weights of the given shape. The link is set so that vanilla spends a
share of the layer outside of its experts (`--share`), or to `--rate`. Half of the requests to plan on, half to run.

Experts compute, on cores that the ranks share; or, with `--emulate`, each rank has a device of its own that takes so many microseconds a
(token, expert) pair, for which the rank sleeps: then a busy device is waited for, as on a cluster, and everything else is real.

    python benchmarks/layer.py TRACE --share 0.7 --tokens 256 --layers 3 [--emulate 400]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from layer_page import show
from slow_link import NODES, RANKS, before_others, bytes_on_link, finish, nodes, start

VANILLA = "vanilla"
WAYS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    (VANILLA, "linear", {}, "pairs"),
    ("contiguous, flat", "linear", {}, "flat"),
    ("Occult, flat", "occult", {}, "flat"),
    ("+ HSC", "occult", {}, "in turn"),
    ("+ hierarchical grouping", "grace_paper", {"replication": "none"}, "in turn"),
    ("+ fixed replication, WRR", "grace_paper", {"replication": "fixed", "replica_choice": "wrr"}, "in turn"),
    ("+ dynamic replication, WRR", "grace_paper", {"replica_choice": "wrr"}, "in turn"),
    ("+ TAR: the paper's GRACE", "grace_paper", {}, "in turn"),
    ("EPLB, HSC", "eplb", {}, "in turn"),
    ("EPLB, our dispatch", "eplb", {}, "hierarchical"),
    ("joint plan, HSC", "grace", {}, "in turn"),
    ("joint plan", "grace", {}, "hierarchical"),
    ("joint plan, requests placed", "grace", {"request_placement": True}, "hierarchical"),
)
"""Name, method, its options, dispatch: `in turn` is the paper's HSC; `hierarchical` computes while rows cross as well."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--share", type=float, default=0.7, help="of vanilla's layer time outside of its experts")
    parser.add_argument("--rate", help="of the link, as tc writes it, instead of --share")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each rank")
    parser.add_argument("--layers", type=int, default=3, help="layers of the trace, evenly spaced")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; the ways take turns in each")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--emulate", type=float, help="microseconds a pair, on a device of the rank's own, instead of computing")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments, folder)
        rate = arguments.rate or calibrated(arguments, folder)
        results, link = run(folder, rate, [way[0] for way in WAYS], arguments.rounds)
        show(arguments, results, link)


def calibrated(arguments: argparse.Namespace, folder: Path) -> str:
    """The rate at which vanilla spends `--share` of its time outside of its experts: two steps, as neither part is proportional."""
    rate = 200.0
    for _ in range(2):
        (vanilla,), _ = run(folder, f"{rate:.0f}mbit", [VANILLA], 2)
        whole, experts = statistics.median(vanilla["seconds"]), statistics.median(vanilla["experts"])
        wanted = experts * arguments.share / (1 - arguments.share)
        rate *= (whole - experts) / wanted
        print(f"vanilla: {1 - experts / whole:.0%} outside of experts; trying {rate:.0f} Mbit/s", file=sys.stderr)
    return f"{rate:.0f}mbit"


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Plan every way, and deal the tokens that are run to the ranks."""
    import numpy as np

    from grace_moe import RoutingTrace, Topology, evaluate, plan
    from grace_moe.choice import place_requests
    from grace_moe.evaluation import Serving
    from grace_moe.evaluation.serving import sources
    from grace_moe.trace import order_of_requests

    topology = Topology.parse(f"{NODES}x{RANKS // NODES}")
    trace = RoutingTrace.load(arguments.trace)
    layers = np.linspace(0, trace.num_layers - 1, arguments.layers).round().astype(int)
    trace = replace(trace, topk_ids=trace.topk_ids[:, layers], layer_ids=tuple(trace.layer_ids[i] for i in layers), topk_weights=None)
    planning, running = trace.split_requests()
    made: dict[str, Any] = {}
    for number, (name, method, options, _) in enumerate(WAYS):
        key = json.dumps([method, options])
        if key not in made:
            made[key] = plan(planning, topology, method, **options)
        placement = made[key]
        placement.save(folder / f"{number}.json")
        source = sources(running, RANKS)
        if options.get("request_placement"):
            source = place_requests(placement, running)[order_of_requests(running)[0]]
        taken = []
        for rank in range(RANKS):
            mine = np.flatnonzero(source == rank)
            taken.append(mine[np.linspace(0, len(mine) - 1, min(arguments.tokens, len(mine))).round().astype(int)])
        np.savez(folder / f"{number}.npz", *[running.topk_ids[tokens] for tokens in taken])
        first_tokens = 8 if options.get("request_placement") else None
        found = evaluate(placement, running, serving=Serving(first_tokens=first_tokens))
        facts = {
            "copies": found.cross_node_copies,
            "load": found.load_max_over_mean,
            "spread": found.load_std_over_mean,
            "idle": found.idle_fraction,
            "slots": placement.slots_total_over_experts,
            "name": name,
        }
        (folder / f"{number}.facts").write_text(json.dumps(facts))
    (folder / "trace.json").write_text(json.dumps({"experts": trace.num_experts, "k": trace.top_k}))


def run(folder: Path, rate: str, names: list[str], rounds: int) -> tuple[list[dict[str, Any]], str]:
    write_job(folder, [(number, way[0], way[3]) for number, way in enumerate(WAYS) if way[0] in names], rounds)
    with nodes(rate) as (prefixes, link):
        ranks = [start(__file__, rank, prefixes[rank * NODES // RANKS], folder) for rank in range(RANKS)]
        finish(ranks)
    return json.loads((folder / "times.json").read_text()), link


def write_job(folder: Path, ways: list[tuple[int, str, str]], rounds: int, read_s: float = 0.0) -> None:
    """What the ranks are to do.

    Args:
        ways: number of the files of each, its name, and its dispatch.
        read_s: what an emulated device takes at the least for each of its experts that has a pair.
    """
    (folder / "job.json").write_text(json.dumps({"ways": ways, "rounds": rounds, "read_s": read_s}))
    (folder / "rendezvous").unlink(missing_ok=True)


def measure(arguments: argparse.Namespace) -> None:
    """One rank: every way's layers in turn, round by round."""
    if arguments.emulate is not None:
        before_others()
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    from grace_moe import Placement
    from grace_moe.runtime.dispatch import FlatDispatcher, HierarchicalDispatcher
    from grace_moe.runtime.dispatch.collectives import TrafficMeter
    from grace_moe.runtime.dispatch.hierarchical import OVERLAP_PAIRS
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.dispatch.route import layer_routes
    from grace_moe.runtime.model.expert_parallel import PlacedLayer
    from grace_moe.runtime.model.load_under_way import loading_for
    from grace_moe.runtime.model.placed_experts import assign_layer
    from grace_moe.runtime.model.session import ExpertParallelSession
    from grace_moe.runtime.model.vanilla import MeteredAllToAll

    rank, folder = arguments.rank, arguments.folder
    job, shape = (json.loads((folder / name).read_text()) for name in ("job.json", "trace.json"))
    torch.set_num_threads(1)
    placements = {number: Placement.load(folder / f"{number}.json") for number, _, _ in job["ways"]}
    topology = next(iter(placements.values())).topology
    ranks = topology.num_devices
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    meter = TrafficMeter(topology=topology, rank=rank)
    groups = make_groups(topology, timedelta(seconds=900))
    mesh = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("ep", "tp"))
    dispatchers = {
        "flat": FlatDispatcher(groups=groups, meter=meter),
        "hierarchical": HierarchicalDispatcher(
            groups=groups, meter=meter, overlap_pairs=None if arguments.emulate is None else OVERLAP_PAIRS
        ),
        "in turn": HierarchicalDispatcher(groups=groups, meter=meter, overlap_pairs=float("inf")),
    }

    def experts_of(slots: int, weights: tuple[torch.Tensor, torch.Tensor] | None) -> torch.nn.Module:
        config = OlmoeConfig(num_experts=slots, hidden_size=arguments.hidden, intermediate_size=arguments.intermediate)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            module = OlmoeExperts(config)
        for name, weight in zip(("gate_up_proj", "down_proj"), weights or (), strict=bool(weights)):
            setattr(module, name, torch.nn.Parameter(weight[:slots], requires_grad=False))
        return module

    torch.manual_seed(rank)
    most = max(int(p.slots_per_device().max()) for p in placements.values())
    size = (arguments.hidden, arguments.intermediate)
    weights = None
    if arguments.emulate is None:
        weights = (torch.randn(most, 2 * size[1], size[0]) / size[0] ** 0.5, torch.randn(most, size[0], size[1]) / size[1] ** 0.5)
    own = None
    if arguments.emulate is not None:
        own = emulated(arguments.emulate * 1e-6, job["read_s"], float(topology.relative_speed[rank]))
    ways = {}
    for number, name, dispatch in job["ways"]:
        placement = placements[number]
        ids = torch.from_numpy(np.load(folder / f"{number}.npz")[f"arr_{rank}"].astype(np.int64))
        layers = []
        routes = layer_routes(placement, rank, seed=0, device=torch.device("cpu"))
        for index, layer_id in enumerate(placement.layer_ids):
            module = experts_of(shape["experts"] // ranks if dispatch == "pairs" else most, weights)
            if dispatch == "pairs":
                with loading_for(meter):
                    layer = MeteredAllToAll(module, mesh["ep"], mesh["tp"])
            else:
                session = ExpertParallelSession(routes=routes, dispatcher=dispatchers[dispatch], meter=meter)
                assign_layer(module, session, layer_id)
                layer = PlacedLayer(module, module.forward)
            layers.append((layer, ids[:, index], clocked(layer, own)))
        hidden = torch.randn(len(ids), arguments.hidden)
        ways[name] = (layers, hidden, torch.full((len(ids), shape["k"]), 1.0 / shape["k"]))
    results = {name: {"way": name, "seconds": [], "experts": [], "sent": 0, "inside": 0, "link": 0} for name in ways}
    with torch.no_grad():
        for round_number in range(job["rounds"] + 1):
            for name, (layers, hidden, mix) in ways.items():
                seconds = experts = 0.0
                meter.reset()
                before = bytes_on_link()
                for layer, ids, spent in layers:
                    spent[0] = 0.0
                    dist.barrier()
                    began = time.perf_counter()
                    layer(hidden, ids, mix)
                    dist.barrier()
                    seconds += time.perf_counter() - began
                    busiest = torch.tensor(spent[0])
                    dist.all_reduce(busiest, dist.ReduceOp.MAX)
                    experts += float(busiest)
                if round_number:  # the first warms up
                    results[name]["seconds"].append(seconds / len(layers))
                    results[name]["experts"].append(experts / len(layers))
                    results[name]["sent"], results[name]["inside"] = meter.cross_node_bytes, meter.intra_node_bytes
                    results[name]["link"] = bytes_on_link() - before if rank in topology.devices_of_nodes[0] else 0
    for result in results.values():
        totals = torch.tensor([result["sent"], result["inside"], result["link"]])
        dist.all_reduce(totals)
        result["sent"], result["inside"], result["link"] = (int(t) / arguments.layers for t in totals)
    if rank == 0:
        (folder / "times.json").write_text(
            json.dumps([results[n] | json.loads((folder / f"{i}.facts").read_text()) for i, n, _ in job["ways"]])
        )
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def emulated(pair_s: float, read_s: float, speed: float) -> Callable[[Any], float]:
    """Seconds of a device for so many pairs of each of its experts: each is read or computed, whichever takes longer."""
    return lambda pairs: float((pairs * pair_s).clamp(min=read_s)[pairs > 0].sum()) / speed


def clocked(layer: Any, own: Callable[[Any], float] | None) -> list[float]:
    """Seconds that the experts of a layer have taken, kept up to date in place; with a device of its own, the rank sleeps for so long."""
    import torch

    spent = [0.0]
    ours = hasattr(layer, "route")
    name = "_compute" if ours else "experts_forward"
    compute = getattr(layer, name)

    def on_own_device(seconds: Callable[[Any], float], rows: Any) -> Any:
        time.sleep(seconds(torch.bincount(rows.slots_RK[rows.slots_RK >= 0]) if ours else torch.tensor([len(rows)])))
        return rows.hidden_RH if ours else rows

    def timed(*inputs: Any) -> Any:
        began = time.perf_counter()
        output = compute(*inputs) if own is None else on_own_device(own, inputs[0])
        spent[0] += time.perf_counter() - began
        return output

    setattr(layer, name, timed)
    return spent


if __name__ == "__main__":
    main()
