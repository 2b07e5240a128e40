"""One MoE layer, router included, beside a peer's in the same run over a slow link: DeepSpeed-MoE, Transformers' all-to-all, ours.

All have the same weights, the same choices (of the router's top-k, no token dropped) and the same inputs, and what they give is compared.
Runs where DeepSpeed is installed (`pip install deepspeed`), and says so where it is not.

    python benchmarks/peers.py --tokens 16,256 --rate 500mbit
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

from slow_link import NODES, RANKS, finish, nodes, start

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 2048, 1024, 64, 8
DEEPSPEED = "DeepSpeed-MoE"
TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="500mbit", help="of the link between nodes, as tc writes it")
    parser.add_argument("--tokens", default="16,256", help="tokens of each rank, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments)
        return
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        print("DeepSpeed is not installed in this environment: nothing to compare with (pip install deepspeed).")
        return
    with nodes(arguments.rate) as (prefixes, link), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish([start(__file__, rank, prefixes[rank * NODES // RANKS], folder) for rank in range(RANKS)])
        show(json.loads((folder / "times.json").read_text()), link, version)


def measure(arguments: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn import functional
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    from grace_moe import RoutingTrace, Topology, plan
    from grace_moe.runtime.dispatch import FlatDispatcher, HierarchicalDispatcher
    from grace_moe.runtime.dispatch.collectives import TrafficMeter
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.dispatch.route import layer_routes
    from grace_moe.runtime.model.expert_parallel import PlacedLayer
    from grace_moe.runtime.model.load_under_way import loading_for
    from grace_moe.runtime.model.placed_experts import assign_layer
    from grace_moe.runtime.model.session import ExpertParallelSession
    from grace_moe.runtime.model.vanilla import MeteredAllToAll

    torch.set_num_threads(1)
    rank, local = arguments.rank, EXPERTS // RANKS
    dist.init_process_group("gloo", init_method=f"file://{arguments.folder}/rendezvous", rank=rank, world_size=RANKS)
    topology = Topology.parse(f"{NODES}x{RANKS // NODES}")
    meter = TrafficMeter(topology=topology, rank=rank)
    groups = make_groups(topology, timedelta(seconds=300))
    mesh = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("ep", "tp"))
    gate = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(0)) * HIDDEN**-0.5

    def routed(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, ids = functional.linear(hidden, gate).softmax(dim=1).topk(TOP_K, dim=1)
        return ids, scores / scores.sum(dim=1, keepdim=True)

    def weights_of(expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1 + expert)
        up = torch.randn(2 * INTERMEDIATE, HIDDEN, generator=generator) * HIDDEN**-0.5
        return up, torch.randn(HIDDEN, INTERMEDIATE, generator=generator) * INTERMEDIATE**-0.5

    def experts_of(ids: tuple[int, ...]) -> torch.nn.Module:
        config = OlmoeConfig(num_experts=len(ids), hidden_size=HIDDEN, intermediate_size=INTERMEDIATE)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            module = OlmoeExperts(config)
        for name, parts in zip(("gate_up_proj", "down_proj"), zip(*map(weights_of, ids), strict=True), strict=True):
            setattr(module, name, torch.nn.Parameter(torch.stack(parts), requires_grad=False))
        return module

    class Expert(torch.nn.Module):
        """One expert as DeepSpeed takes it."""

        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(HIDDEN, 2 * INTERMEDIATE, bias=False)
            self.down = torch.nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            first, second = self.up(hidden).chunk(2, dim=-1)
            return self.down(functional.silu(first) * second)

    trace_ids, _ = routed(torch.randn(2000, HIDDEN, generator=torch.Generator().manual_seed(99)))
    trace = RoutingTrace(topk_ids=trace_ids[:, None].numpy().astype("int16"), num_experts=EXPERTS, layer_ids=(0,))

    def ours(method: str, kind: type) -> PlacedLayer:
        routes = layer_routes(plan(trace, topology, method), rank, seed=0, device=torch.device("cpu"))
        module = experts_of(routes[0].local_experts)
        assign_layer(module, ExpertParallelSession(routes=routes, dispatcher=kind(groups=groups, meter=meter), meter=meter), 0)
        return PlacedLayer(module, module.forward)

    contiguous = tuple(range(rank * local, (rank + 1) * local))
    with loading_for(meter):
        vanilla = MeteredAllToAll(experts_of(contiguous), mesh["ep"], mesh["tp"])
    layers = {
        "Transformers, all_to_all": vanilla,
        "ours: contiguous, flat": ours("linear", FlatDispatcher),
        "ours: joint plan, hierarchical": ours("grace", HierarchicalDispatcher),
    }
    peer = deepspeed_layer(Expert(), rank)
    with torch.no_grad():
        peer.deepspeed_moe.gate.wg.weight.copy_(gate)
        for expert, module in zip(contiguous, peer.deepspeed_moe.experts.deepspeed_experts, strict=True):
            for parameter, weight in zip((module.up.weight, module.down.weight), weights_of(expert), strict=True):
                parameter.copy_(weight)
    results = []
    for tokens in (int(n) for n in arguments.tokens.split(",")):
        hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1000 + rank))
        ways = {name: lambda layer=layer, hidden=hidden: layer(hidden, *routed(hidden)) for name, layer in layers.items()}
        ways[DEEPSPEED] = lambda hidden=hidden: peer(hidden[None])[0][0]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with torch.no_grad():
            outputs = {name: way() for name, way in ways.items()}  # warms up
            for name, output in outputs.items():
                torch.testing.assert_close(output, outputs["Transformers, all_to_all"], atol=TOLERANCE, rtol=0, msg=name)
            for _ in range(arguments.rounds):
                for name, way in ways.items():
                    dist.barrier()
                    began = time.perf_counter()
                    way()
                    dist.barrier()
                    seconds[name].append(time.perf_counter() - began)
        results.append({"tokens": tokens, "seconds": seconds})
    if rank == 0:
        (arguments.folder / "times.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def deepspeed_layer(expert, rank: int):
    """DeepSpeed's MoE layer over all ranks, capacity so that no token is dropped."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    import deepspeed
    from deepspeed.moe.layer import MoE

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    layer = MoE(HIDDEN, expert, num_experts=EXPERTS, ep_size=RANKS, k=TOP_K, drop_tokens=False, use_rts=False)
    layer.set_deepspeed_parallelism()
    return layer.eval()


def show(results: list[dict], link: str, version: str) -> None:
    print(f"# One MoE layer beside a peer's, {date.today()}\n")
    print(f"`python benchmarks/peers.py`: {platform.machine()}, {os.cpu_count()} cores, {NODES}x{RANKS // NODES} ranks over gloo, {link};")
    print(f"DeepSpeed {version}. Hidden {HIDDEN}, intermediate {INTERMEDIATE}, float32, {EXPERTS} experts, top-{TOP_K}; router included.")
    print(f"Outputs of all agree to {TOLERANCE:g}. Median (least to most) of rounds; all layers in turn in one run.\n")
    print("| tokens a rank | layer | ms | least to most | DeepSpeed-MoE takes |\n|---|---|---|---|---|")
    for r in results:
        base = statistics.median(r["seconds"][DEEPSPEED])
        for name, seconds in r["seconds"].items():
            median = statistics.median(seconds)
            spread = f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}"
            print(f"| {r['tokens']} | {name} | {median * 1e3:.0f} | {spread} | {base / median:.2f}x |")


if __name__ == "__main__":
    main()
