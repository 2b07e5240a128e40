"""Four ranks give what the reference gives, to the last bit: same experts, same order of sums, whatever the dispatch."""

from contextlib import nullcontext
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

from grace_moe.runtime.dispatch import AutoDispatcher, FlatDispatcher, HierarchicalDispatcher, Received
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.rank_groups import make_groups, rank_device
from grace_moe.runtime.dispatch.route import layer_routes
from grace_moe.runtime.dispatch.rows import add_rows
from grace_moe.runtime.job.ranks import Membership

from .conftest import EXPERTS, TOP_K, placement_of, scattered_with_replicas
from .reference import reference_placed

RANKS, HIDDEN = 4, 24
TOKENS = (9, 0, 1, 30)
"""Of each rank."""
SHAPES = ("2x2", "1+3", "4x1", "1x4")


def expert(hidden, ids, weights):
    """Multiplication rounds alike in any batch, other than a matrix product."""
    return hidden * (1 + ids / 7).to(hidden.dtype) * weights.to(hidden.dtype)


def check_on_rank(shape: str, member: Membership) -> None:
    rank, device = member.rank, rank_device()
    placement = placement_of(shape, scattered_with_replicas(RANKS))
    topology = placement.topology
    groups = make_groups(topology, timedelta(seconds=60))
    meter = TrafficMeter(topology=topology, rank=rank)
    route = layer_routes(placement, rank, seed=5, device=device)[0]
    of_slot = torch.tensor(route.local_experts, device=device)

    def compute(received: Received) -> torch.Tensor:
        row, k = (received.slots_RK >= 0).nonzero(as_tuple=True)
        ids, weights = of_slot[received.slots_RK[row, k]], received.weights_RK[row, k]
        return add_rows(expert(received.hidden_RH[row], ids[:, None], weights[:, None]), row, len(received.hidden_RH))

    own = int(topology.node_of_device[rank])
    nodes = [list(topology.devices_of_node(n)) for n in (own, *(n for n in range(topology.num_nodes) if n != own))]
    apart = [[d] for d in range(RANKS)]
    hierarchical = HierarchicalDispatcher(groups=groups, meter=meter, overlap_pairs=float("inf"))
    ways = {
        "flat": (FlatDispatcher(groups=groups, meter=meter), apart),
        "hierarchical": (hierarchical, nodes),
        "hierarchical, in parts": (HierarchicalDispatcher(groups=groups, meter=meter, overlap_pairs=0), nodes),
        "auto, as flat": (AutoDispatcher(groups=groups, meter=meter, flat_bytes=float("inf")), apart),
        "auto, as hierarchical": (AutoDispatcher(groups=groups, meter=meter, flat_bytes=0), nodes if len(nodes) > 1 else apart),
    }
    generator = torch.Generator().manual_seed(rank)
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(TOKENS[rank], HIDDEN, generator=generator).to(dtype)
        ids = torch.rand(TOKENS[rank], EXPERTS, generator=generator).argsort(dim=1)[:, :TOP_K]
        ids = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.1, -1)
        weights = torch.rand(ids.shape, generator=generator)
        hidden, ids, weights = hidden.to(device), ids.to(device), weights.to(device)
        outgoing = route.outgoing(hidden, ids, weights, first_token=0)
        for name, (dispatcher, order) in ways.items():
            got = dispatcher.run(outgoing, compute, lambda _: nullcontext())
            wanted = reference_placed(expert, hidden, ids, weights, outgoing.devices_TK, ways=order)
            assert torch.equal(got, wanted), (name, dtype, (got - wanted).abs().max())


@pytest.mark.ranks
@pytest.mark.parametrize("shape", SHAPES)
def test_dispatch_and_combine_equal_the_reference_to_the_last_bit(shape, pool):
    pool.do(check_on_rank, shape)
