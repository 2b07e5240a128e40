"""SGLang's own code (0.5.23): its location loader reads what we export, its dispatch rule picks the replicas that the docs say, its hook
registry takes the plug-in and its balancer's maps are the plan's. The recorder's accumulation is not run.
"""

import importlib
import json

import numpy as np
import pytest
import torch

from grace_moe import Topology
from grace_moe.engines import SlotMap
from grace_moe.engines.equaliser import spread_evenly
from grace_moe.engines.live.live_plan import PLAN
from grace_moe.placement import Placement
from sglang_stand_ins import EXPERTS, LAYERS, PLANNED, RANKS, SLOTS, Model, hooked, load, unpacked

pytestmark = unpacked


@pytest.mark.shows("sglang", "place", "modules")
@pytest.mark.shows("sglang", "static start", "modules")
def test_its_loader_reads_what_we_export(sglang, sglang_plan, tmp_path):
    metadata = load(sglang, sglang_plan, tmp_path, 0)
    planned = SlotMap.of(sglang_plan)
    assert (metadata.num_layers, metadata.num_physical_experts, metadata.num_logical_experts) == (LAYERS, SLOTS, EXPERTS)
    assert (metadata.physical_to_logical_map[list(PLANNED)].numpy() == planned.physical_to_logical).all()


@pytest.mark.parametrize("rank", range(RANKS))
def test_its_static_dispatch_takes_the_nearest_replica(sglang, sglang_plan, tmp_path, rank):
    metadata = load(sglang, sglang_plan, tmp_path, rank)
    per_rank = SLOTS // RANKS
    for index, layer_id in enumerate(PLANNED):
        for expert, devices in enumerate(sglang_plan.layers[index].devices_of_expert):
            slot = int(metadata.logical_to_rank_dispatch_physical_map[layer_id, expert])
            assert metadata.physical_to_logical_map[layer_id, slot] == expert
            near = [d for d in devices if d // 2 == rank // 2]
            assert slot // per_rank in ([rank] if rank in devices else near or devices)


def test_it_refuses_a_file_with_another_key(sglang, sglang_plan, tmp_path):
    load(sglang, sglang_plan, tmp_path, 0)
    value = json.loads((tmp_path / "location.json").read_text()) | {"model": "x"}
    (tmp_path / "location.json").write_text(json.dumps(value))
    with pytest.raises(TypeError):
        sglang.location.compute_initial_expert_location_metadata(Model, moe_ep_rank=0)


@pytest.mark.shows("sglang", "place", "modules")
def test_its_hook_registry_and_balancer_take_the_plug_in(sglang, sglang_plan, tmp_path, monkeypatch):
    """Their `init_by_eplb`, which the online balancer calls: with the hook it gives the plan, without one EPLB's."""
    monkeypatch.setenv(PLAN, str(tmp_path / "plan.json"))
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    algorithms = importlib.import_module("sglang.srt.eplb.eplb_algorithms")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    counts = torch.randint(1, 99, (LAYERS, EXPERTS), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    theirs = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)

    from grace_moe.engines.sglang import plugin as sglang_plugin

    sglang_plugin.register()
    registry.apply_hooks()
    assert algorithms.rebalance_experts.__module__ != "grace_moe.engines.sglang.plugin"  # their wrapper around ours
    ours = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    planned = SlotMap.of(Placement.load(tmp_path / "plan.json")).physical_to_logical
    assert (ours.physical_to_logical_map[list(PLANNED)].numpy() == planned).all()
    assert not torch.equal(ours.physical_to_logical_map, theirs.physical_to_logical_map)
    assert ours.logical_to_all_physical_map.shape == theirs.logical_to_all_physical_map.shape
    sglang.moe.ep_num_redundant_experts = 0  # 4 slots a rank: the plan is equalised to them, and still whole
    fewer = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    assert (np.sort(fewer.physical_to_logical_map.numpy(), axis=1) == np.arange(EXPERTS)).all()


def test_its_elastic_balancer_gives_dead_ranks_no_experts(sglang, sglang_plan, tmp_path, monkeypatch):
    """Their `init_by_eplb` and `elasticity_aware` with the hooks, rank 1 dead: the maps are of the form that their own have."""
    sglang.moe.eplb_algorithm = "elasticity_aware"
    sglang.moe.ep_num_redundant_experts = 8  # 6 slots a rank: 18 on three ranks for 16 experts
    counts = torch.randint(1, 99, (LAYERS, EXPERTS), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    sglang.alive.active_ranks[1] = 0
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    theirs = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    hooked(monkeypatch, tmp_path)
    ours = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    assert not torch.equal(ours.physical_to_logical_map, theirs.physical_to_logical_map)
    for name, value in vars(theirs).items():
        if isinstance(value, torch.Tensor):
            assert (getattr(ours, name).shape, getattr(ours, name).dtype) == (value.shape, value.dtype)
    for metadata in (theirs, ours):
        slots = metadata.logical_to_all_physical_map
        assert (metadata.physical_to_logical_map[:, 6:12] == 0).all()
        assert not ((slots >= 6) & (slots < 12)).any()
        assert (metadata.logical_to_all_physical_map_num_valid >= 1).all()
        assert not ((metadata.logical_to_rank_dispatch_physical_map >= 6) & (metadata.logical_to_rank_dispatch_physical_map < 12)).any()
    sglang.alive.active_ranks[1] = 1
    whole = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    held = [set(row) for row in whole.physical_to_logical_map[PLANNED[0]].view(RANKS, 6).tolist()]
    assert all(planned <= held[rank] for rank, planned in enumerate(map(set, sglang_plan.experts_of_device(0))))


def test_where_the_plan_does_not_fit_its_own_balancer_decides(sglang, sglang_plan, tmp_path, monkeypatch):
    monkeypatch.setenv(PLAN, str(tmp_path / "plan.json"))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    from grace_moe.engines.sglang import plugin as sglang_plugin

    counts = torch.ones(LAYERS, EXPERTS, dtype=torch.int32)
    sglang.parallel.ep_size = 2
    theirs = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts)
    sglang_plugin.register()
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
    assert torch.equal(
        sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts).physical_to_logical_map, theirs.physical_to_logical_map
    )


def _even(layer):
    """`[experts]` loads under which every device computes as much: by least squares, as replicas share on 2x2."""
    placed = Placement(topology=Topology.parse("2x2"), num_experts=EXPERTS, layers=(layer,))
    share = spread_evenly(placed, np.full((1, EXPERTS), 1_000_000))[0].T / 1e6  # [devices, experts]
    loads = np.linalg.lstsq(share, np.ones(RANKS), rcond=None)[0]
    assert loads.min() > 0
    return loads


@pytest.mark.shows("sglang", "re-plan", "modules")
def test_its_balancer_moves_nothing_on_steady_loads_and_at_most_the_budget_after_a_shift(sglang, sglang_plan, tmp_path, monkeypatch):
    """Their `init_by_eplb` with the hooks, window after window; by loads alone, as nothing else is told there."""
    monkeypatch.setenv("GRACE_MOE_REPLAN", "1")
    monkeypatch.setenv("GRACE_MOE_MOVES", "6")
    hooked(monkeypatch, tmp_path)
    generator = np.random.default_rng(0)
    as_planned = [_even(layer) for layer in sglang_plan.layers]
    hot = [np.where(np.arange(EXPERTS) < 3, 8.0, 1.0)] * len(PLANNED)

    def held(likely):
        """`[planned layers, ranks, slots]` experts after a window whose tokens choose so."""
        counts = torch.zeros((LAYERS, EXPERTS), dtype=torch.int32)
        counts[list(PLANNED)] = torch.from_numpy(np.stack([generator.multinomial(20_000, of / of.sum()) for of in likely])).int()
        table = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, counts).physical_to_logical_map[list(PLANNED)]
        return table.reshape(len(PLANNED), RANKS, -1).sort().values.numpy()

    first, *steady = [held(as_planned) for _ in range(21)]
    assert all((table == first).all() for table in steady)
    last, moves = first, []
    for table in (held(hot) for _ in range(8)):
        moves.append(sum(len(set(new) - set(old)) for new, old in zip(table.reshape(-1, 5), last.reshape(-1, 5), strict=True)))
        last = table
    assert 0 < max(moves) <= 6
