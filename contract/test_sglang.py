"""SGLang's own code (the wheel of sglang 0.5.23, unpacked, not installed: it wants CUDA): its location loader reads what we export, its
dispatch rule picks the replicas that the docs say, its hook registry takes the plug-in and its balancer's maps are the plan's.

Only what surrounds these modules in a server is a stand-in: parallel sizes, flags, devices. The recorder's accumulation is not run.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from grace_moe import Topology, plan
from grace_moe.engines import EXPORTERS, Hints, SlotMap
from grace_moe.engines.backends import SGLANG
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
    alive = SimpleNamespace(active_ranks=torch.ones(RANKS, dtype=torch.int32))
    stand_ins = {
        "sglang.srt.runtime_context": {
            "get_device": lambda: SimpleNamespace(device="cpu"),
            "get_exec": lambda: SimpleNamespace(moe=moe),
            "get_parallel": lambda: parallel,
            "get_resources": lambda: None,
        },
        "sglang.srt.elastic_ep.elastic_ep": {
            "elastic_expanded_world_enabled": lambda: False,
            "ElasticEPStateManager": SimpleNamespace(instance=lambda: alive),
        },
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
    return SimpleNamespace(moe=moe, parallel=parallel, alive=alive, location=importlib.import_module("sglang.srt.eplb.expert_location"))


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


def hooked(monkeypatch, tmp_path):
    """Our plug-in in their registry."""
    monkeypatch.setenv(PLAN, str(tmp_path / "plan.json"))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    from grace_moe.engines.sglang import plugin as sglang_plugin

    sglang_plugin.register()
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()


def test_its_elastic_balancer_gives_dead_ranks_no_experts(sglang, placement, tmp_path, monkeypatch):
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
    assert all(planned <= held[rank] for rank, planned in enumerate(map(set, placement.experts_of_device(0))))


@pytest.fixture
def parser(sglang, monkeypatch):
    """Of their server's command line."""
    orjson = ModuleType("orjson")  # the one package that its modules want and vLLM's environment has not
    monkeypatch.setitem(sys.modules, "orjson", orjson)
    for name in [n for n in sys.modules if n.startswith("sglang.srt.")]:
        monkeypatch.delitem(sys.modules, name)
    found = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(found)
    return found


def test_its_parser_takes_the_flags_that_export_prints(parser, placement):
    """For every backend that a plan may be for."""
    for backend in SGLANG:
        planned = replace(placement, provenance={"backend": backend})
        launch = EXPORTERS["sglang"](SlotMap.of(planned), Hints(num_hidden_layers=LAYERS), ()).launch
        words = shlex.split(launch.replace("\\\n", " "))
        assert words[:3] == ["python", "-m", "sglang.launch_server"]
        arguments = parser.parse_args(words[3:])
        assert (arguments.tp_size, arguments.ep_size, arguments.ep_num_redundant_experts) == (RANKS, RANKS, SLOTS - EXPERTS)
        static = arguments.moe_a2a_backend != "none"  # SGLang refuses static choice where every rank has every token
        assert arguments.ep_dispatch_algorithm == ("static" if static else "dynamic")


def test_its_parser_takes_the_flags_of_the_page(parser):
    """Those of online balancing and of recording."""
    text = (Path(__file__).parents[1] / "docs/engines/sglang.md").read_text()
    flags = set(re.findall(r"(?<=[\s`])--(?:eplb|ep|elastic|expert|enable|moe|deepep|init|disable|model)-[a-z0-9-]+", text))
    assert len(flags) > 10
    assert flags <= set(parser._option_string_actions)


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
