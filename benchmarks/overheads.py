"""What routing (replica choice) and packing cost of a whole MoE layer, by processor time of each rank's own thread.

Ranks share the cores here, so that wall time counts what others do; a rank's processor time does not. The share is of the rank's own
routing, packing and expert compute alone: waiting and the link are left out, and would only make it smaller.

    python benchmarks/overheads.py --shape 2x2 --tokens 512,1024
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
from typing import Any

from slow_link import finish, start

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, SKEW = 2048, 1024, 64, 8, 0.57
"""OLMoE's, with a spread of loads as in its traces."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2x2", help="nodes x ranks of each")
    parser.add_argument("--tokens", default="512,1024", help="tokens of each rank, comma-separated")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments)
        return
    count, each = (int(n) for n in arguments.shape.split("x"))
    with tempfile.TemporaryDirectory() as name:
        finish([start(__file__, rank, [], Path(name)) for rank in range(count * each)])
        show(arguments.shape, [json.loads(path.read_text()) for path in sorted(Path(name).glob("rank*.json"))])


def measure(arguments: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    from grace_moe import RoutingTrace, Topology, plan
    from grace_moe.runtime.dispatch import HierarchicalDispatcher
    from grace_moe.runtime.dispatch.collectives import TrafficMeter
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.dispatch.route import layer_routes
    from grace_moe.runtime.model.expert_parallel import PlacedLayer
    from grace_moe.runtime.model.placed_experts import assign_layer
    from grace_moe.runtime.model.session import ExpertParallelSession

    torch.set_num_threads(1)
    rank, topology = arguments.rank, Topology.parse(arguments.shape)
    world = topology.num_devices
    dist.init_process_group("gloo", init_method=f"file://{arguments.folder}/rendezvous", rank=rank, world_size=world)
    meter = TrafficMeter(topology=topology, rank=rank)
    dispatcher = HierarchicalDispatcher(groups=make_groups(topology, timedelta(seconds=300)), meter=meter)
    popularity = torch.randn(EXPERTS, generator=torch.Generator().manual_seed(0)) * SKEW

    def routed(tokens: int, seed: int) -> torch.Tensor:
        noise = torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed))
        return (popularity - torch.log(-torch.log(noise))).topk(TOP_K).indices

    trace = RoutingTrace(topk_ids=routed(4000, 1)[:, None].numpy().astype("int16"), num_experts=EXPERTS, layer_ids=(0,))
    routes = layer_routes(plan(trace, topology), rank, seed=0, device=torch.device("cpu"))
    session = ExpertParallelSession(routes=routes, dispatcher=dispatcher, meter=meter)
    slots = max(1, len(routes[0].local_experts))
    routing = [clocked(type(routes[0]), name) for name in ("devices_of", "slots_of")]
    results = []
    for dtype in arguments.dtypes.split(","):
        config = OlmoeConfig(num_experts=slots, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            module = OlmoeExperts(config)
        for name, meta in list(module.named_parameters()):
            weight = torch.empty(meta.shape, dtype=getattr(torch, dtype)).normal_(std=HIDDEN**-0.5)
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        assign_layer(module, session, 0)
        layer = PlacedLayer(module, module.forward)
        experts = clocked(layer, "_compute")
        for tokens in (int(n) for n in arguments.tokens.split(",")):
            ids, hidden = routed(tokens, 2 + rank), torch.randn(tokens, HIDDEN).to(getattr(torch, dtype))
            weights = torch.full(ids.shape, 1.0 / TOP_K)
            for round_number in range(arguments.rounds + 1):
                dist.barrier()
                for clock in (experts, *routing):
                    clock[0] = 0.0
                began = time.thread_time()
                with torch.no_grad():
                    layer(hidden, ids, weights)
                whole = time.thread_time() - began
                if round_number:  # the first warms up
                    chosen = sum(clock[0] for clock in routing)
                    parts = {"experts": experts[0], "routing": chosen, "packing": whole - experts[0] - chosen}
                    results.append({"dtype": dtype, "tokens": tokens} | parts)
    (arguments.folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def clocked(owner: Any, name: str) -> list[float]:
    """Processor seconds of this thread in a method, kept up to date in place."""
    spent, method = [0.0], getattr(owner, name)

    def timed(*inputs: Any) -> Any:
        began = time.thread_time()
        output = method(*inputs)
        spent[0] += time.thread_time() - began
        return output

    setattr(owner, name, timed)
    return spent


def show(shape: str, ranks: list[list[dict]]) -> None:
    print(f"# Routing and packing, {date.today()}\n")
    print(f"`python benchmarks/overheads.py`: {platform.machine()}, {os.cpu_count()} cores, {shape} ranks over gloo, loopback.")
    print(f"Hidden {HIDDEN}, intermediate {INTERMEDIATE}, {EXPERTS} experts, top-{TOP_K}, joint plan, hierarchical dispatch.")
    print("Processor milliseconds of a rank's own thread, median over ranks and rounds. Packing is all of dispatch and combine that is")
    print("not waiting: visits, rows, sums.\n")
    print("| dtype | tokens a rank | experts | routing | packing | routing and packing, share (least to most) |\n|---|---|---|---|---|---|")
    every = [r for rank in ranks for r in rank]
    for dtype, tokens in dict.fromkeys((r["dtype"], r["tokens"]) for r in every):
        mine = [r for r in every if (r["dtype"], r["tokens"]) == (dtype, tokens)]
        experts, routing, packing = (1e3 * statistics.median(r[part] for r in mine) for part in ("experts", "routing", "packing"))
        shares = [(r["routing"] + r["packing"]) / (r["routing"] + r["packing"] + r["experts"]) for r in mine]
        share = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        print(f"| {dtype} | {tokens} | {experts:.0f} | {routing:.2f} | {packing:.1f} | {share} |")


if __name__ == "__main__":
    main()
