"""The hierarchical dispatch that stands behind vLLM's seam, on gloo processes: every pair computed once, and what it sends counted."""

from contextlib import closing

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines.vllm.two_stages import Rows, TwoStages
from grace_moe.evaluation.count import count
from grace_moe.topology import Topology
from tests.rank_pool import RankPool

RANKS, PER_RANK, TOP_K, HIDDEN = 4, 3, 3, 5
NODES = {"2x2": [2, 2], "4x1": [1, 1, 1, 1], "1x4": [4], "3+1": [3, 1]}


def topology(name):
    return Topology.from_dict({"nodes": [{"devices": [{}] * number} for number in NODES[name]]})


def tokens(rank, case):
    """Each rank has its own number of tokens, one rank none; some pairs are absent. Whole numbers, so that sums are exact."""
    generator = torch.Generator().manual_seed(100 * case + rank)
    number = (7, 0, 5, 1)[(rank + case) % RANKS]
    hidden = torch.randint(-9, 9, (number, HIDDEN), generator=generator).float()
    slots = torch.argsort(torch.rand(number, RANKS * PER_RANK, generator=generator))[:, :TOP_K]
    weights = torch.randint(1, 5, (number, TOP_K), generator=generator).float()
    return hidden, torch.where(torch.rand(slots.shape, generator=generator) < 0.2, -1, slots), weights


def expert(hidden, slot):
    return hidden * (slot + 1) + slot


def computed(hidden, slots, weights, own):
    """`[R, H]` weighted sums over the slots that `own` has."""
    sums = torch.zeros_like(hidden)
    for k in range(TOP_K):
        here = (slots[:, k] >= own.start) & (slots[:, k] < own.stop)
        sums += torch.where(here[:, None], expert(hidden, slots[:, k : k + 1]) * weights[:, k : k + 1], 0)
    return sums


def be_a_rank(member):
    """What went wrong on this rank, "" = nothing."""
    rank, failed = member.rank, ""
    own = range(rank * PER_RANK, (rank + 1) * PER_RANK)
    for name in NODES:
        stages = TwoStages(group=dist.group.WORLD, topology=topology(name), rank=rank, slots_per_rank=PER_RANK, device=torch.device("cpu"))
        expected = np.zeros(3, dtype=np.int64)
        for case in range(4):
            hidden, slots, weights = tokens(rank, case)
            real = max(0, len(hidden) - case)  # the rest is taken for padding: sent, but not counted
            rows = stages.dispatch(Rows(hidden=hidden, slots=slots.to(torch.int32), weights=weights), real)
            assert rows.slots.dtype == torch.int32
            assert bool(((rows.slots >= own.start) & (rows.slots < own.stop)).any(dim=1).all()), f"{name}: a row that nobody here computes"
            got = stages.combine(computed(rows.hidden, rows.slots, rows.weights, own))
            if not torch.equal(got, computed(hidden, slots, weights, range(RANKS * PER_RANK))):
                failed = f"{name}: case {case}: a sum is wrong"
            devices = torch.where(slots < 0, -1, slots // PER_RANK).numpy()[:real]
            counted = count(devices, np.full(real, rank), topology(name))
            expected += [real, counted.cross_node, counted.pairs_cross_node]
        if stages.sent.to_dict() != dict(zip(("tokens", "copies", "pairs"), expected.tolist(), strict=True)):
            failed = f"{name}: what was sent is counted wrongly"
    return failed


@pytest.mark.ranks
def test_every_pair_is_computed_once_and_copies_are_those_of_a_replay(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # over gloo
    with closing(RankPool(RANKS)) as pool:
        assert pool.do(be_a_rank) == [""] * RANKS


@given(
    rows=st.integers(0, 5),
    hidden=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    ids=st.sampled_from(["int32", "int64"]),
    which=st.data(),
)
def test_packed_rows_are_the_rows(rows, hidden, dtype, ids, which):
    whole = Rows(
        hidden=torch.randn(rows, hidden).to(getattr(torch, dtype)),
        slots=torch.randint(-1, 4096, (rows, TOP_K)).to(getattr(torch, ids)),
        weights=torch.rand(rows, TOP_K),
    )
    some = torch.tensor(which.draw(st.lists(st.integers(0, rows - 1), max_size=4)) if rows else [], dtype=torch.int64)
    found = whole.unpacked(whole.packed(some))
    for got, want in ((found.hidden, whole.hidden), (found.slots, whole.slots), (found.weights, whole.weights)):
        assert got.dtype == want.dtype
        assert torch.equal(got, want[some])
