"""SGLang's own code (the wheel of sglang 0.5.23, unpacked, not installed: it wants CUDA): its location loader reads what we export, its
dispatch rule picks the replicas that the docs say, its hook registry takes the plug-in and its balancer's maps are the plan's.

Only what surrounds these modules in a server is a stand-in: parallel sizes, flags, devices. The recorder's accumulation is not run.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from grace_moe import Topology, plan
from grace_moe.engines import EXPORTERS, Hints, SlotMap
from grace_moe.engines.live_plan import PLAN
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace, synthetic_trace

SOURCE = Path(os.environ.get("SGLANG_SOURCE", "none"))
if not (SOURCE / "sglang/srt/eplb/expert_location.py").exists():
    pytest.skip("SGLANG_SOURCE does not name an unpacked sglang", allow_module_level=True)

EXPERTS, LAYERS, RANKS, SLOTS = 16, 5, 4, 20
PLANNED = (1, 2, 4)


@pytest.fixture
def sglang(monkeypatch):
    """Their package from the wheel; stand-ins for what a running server would know."""
    for name in [n for n in sys.modules if n == "sglang" or n.startswith("sglang.")]:
        monkeypatch.delitem(sys.modules, name)
    moe = SimpleNamespace(
        init_expert_location="trivial",
        ep_num_redundant_experts=SLOTS - EXPERTS,
        ep_dispatch_algorithm="static",
        moe_a2a_backend="deepep",
        ep_join_mode=None,
        eplb_algorithm="auto",
    )
    parallel = SimpleNamespace(ep_size=RANKS, nnodes=2, elastic_ep_initial_size=None)
    stand_ins = {
        "sglang.srt.runtime_context": {
            "get_device": lambda: SimpleNamespace(device="cpu"),
            "get_exec": lambda: SimpleNamespace(moe=moe),
            "get_parallel": lambda: parallel,
            "get_resources": lambda: None,
        },
        "sglang.srt.elastic_ep.elastic_ep": {"elastic_expanded_world_enabled": lambda: False},
        "sglang.srt.environ": {
            "envs": SimpleNamespace(SGLANG_PLUGINS=SimpleNamespace(get=lambda: ""), SGLANG_PLATFORM=SimpleNamespace(get=lambda: ""))
        },
        "sglang.srt.model_loader": {"get_model_architecture": lambda config: (config, None)},
    }
    for name in ("sglang", "sglang.srt", "sglang.srt.elastic_ep"):
        module = ModuleType(name)
        module.__path__ = [str(SOURCE / name.replace(".", "/"))]
        monkeypatch.setitem(sys.modules, name, module)
    for name, values in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(moe=moe, parallel=parallel, location=importlib.import_module("sglang.srt.eplb.expert_location"))


class Model:
    """A model class as their loader asks it."""

    hf_config = None

    @staticmethod
    def get_model_config_for_expert_location(config):
        return SimpleNamespace(num_layers=LAYERS, num_logical_experts=EXPERTS, num_groups=None)


@pytest.fixture
def placement(tmp_path):
    trace = synthetic_trace(tokens=600, layers=3, experts=EXPERTS, top_k=4, seed=2)
    trace = RoutingTrace(topk_ids=trace.topk_ids, num_experts=EXPERTS, layer_ids=PLANNED, request_ids=trace.request_ids)
    found = plan(trace, Topology.parse("2x2"), slots_per_device=SLOTS // RANKS)
    found.save(tmp_path / "plan.json")
    return found


def load(sglang, placement, tmp_path, rank):
    """Their loader on our file, as `--init-expert-location` calls it."""
    path = tmp_path / "location.json"
    path.write_bytes(EXPORTERS["sglang"](SlotMap.of(placement), Hints(num_hidden_layers=LAYERS), ()).data)
    sglang.moe.init_expert_location = str(path)
    return sglang.location.compute_initial_expert_location_metadata(Model, moe_ep_rank=rank)


@pytest.mark.shows("sglang", "place", "modules")
@pytest.mark.shows("sglang", "static start", "modules")
def test_its_loader_reads_what_we_export(sglang, placement, tmp_path):
    metadata = load(sglang, placement, tmp_path, 0)
    planned = SlotMap.of(placement)
    assert (metadata.num_layers, metadata.num_physical_experts, metadata.num_logical_experts) == (LAYERS, SLOTS, EXPERTS)
    assert (metadata.physical_to_logical_map[list(PLANNED)].numpy() == planned.physical_to_logical).all()


@pytest.mark.parametrize("rank", range(RANKS))
def test_its_static_dispatch_takes_the_nearest_replica(sglang, placement, tmp_path, rank):
    metadata = load(sglang, placement, tmp_path, rank)
    per_rank = SLOTS // RANKS
    for index, layer_id in enumerate(PLANNED):
        for expert, devices in enumerate(placement.layers[index].devices_of_expert):
            slot = int(metadata.logical_to_rank_dispatch_physical_map[layer_id, expert])
            assert metadata.physical_to_logical_map[layer_id, slot] == expert
            near = [d for d in devices if d // 2 == rank // 2]
            assert slot // per_rank in ([rank] if rank in devices else near or devices)


def test_it_refuses_a_file_with_another_key(sglang, placement, tmp_path):
    load(sglang, placement, tmp_path, 0)
    value = json.loads((tmp_path / "location.json").read_text()) | {"model": "x"}
    (tmp_path / "location.json").write_text(json.dumps(value))
    with pytest.raises(TypeError):
        sglang.location.compute_initial_expert_location_metadata(Model, moe_ep_rank=0)


@pytest.mark.shows("sglang", "place", "modules")
def test_its_hook_registry_and_balancer_take_the_plug_in(sglang, placement, tmp_path, monkeypatch):
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


def test_where_the_plan_does_not_fit_its_own_balancer_decides(sglang, placement, tmp_path, monkeypatch):
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
