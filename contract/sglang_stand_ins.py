"""SGLang's own modules from its wheel, unpacked, not installed (it wants CUDA), for the tests of SGLang.

Only what surrounds these modules in a server is a stand-in: parallel sizes, flags, devices, who is alive.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from grace_moe import Topology, plan
from grace_moe.engines import EXPORTERS, Hints, SlotMap
from grace_moe.engines.live.live_plan import PLAN
from grace_moe.trace import RoutingTrace, synthetic_trace

SOURCE = Path(os.environ.get("SGLANG_SOURCE", "none"))
unpacked = pytest.mark.skipif(not (SOURCE / "sglang/srt/eplb/expert_location.py").exists(), reason="SGLANG_SOURCE names no unpacked sglang")

EXPERTS, LAYERS, RANKS, SLOTS = 16, 5, 4, 20
PLANNED = (1, 2, 4)


@pytest.fixture
def _forgotten():
    """After the test no module of theirs is left, so that a later one meets neither its hooks nor its stand-ins."""
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "sglang"]:
        del sys.modules[name]


@pytest.fixture
def sglang(_forgotten, monkeypatch):
    """Their package from the wheel; stand-ins for what a running server would know."""
    moe = SimpleNamespace(
        init_expert_location="trivial",
        ep_num_redundant_experts=SLOTS - EXPERTS,
        ep_dispatch_algorithm="static",
        moe_a2a_backend="deepep",
        ep_join_mode=None,
        eplb_algorithm="auto",
    )
    parallel = SimpleNamespace(ep_size=RANKS, nnodes=2, elastic_ep_initial_size=None)
    resources = SimpleNamespace(expert_location_metadata=None)
    alive = SimpleNamespace(active_ranks=torch.ones(RANKS, dtype=torch.int32))
    stand_ins = {
        "sglang.srt.runtime_context": {
            "get_device": lambda: SimpleNamespace(device="cpu"),
            "get_exec": lambda: SimpleNamespace(moe=moe),
            "get_parallel": lambda: parallel,
            "get_resources": lambda: resources,
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
    return SimpleNamespace(
        moe=moe,
        parallel=parallel,
        resources=resources,
        alive=alive,
        location=importlib.import_module("sglang.srt.eplb.expert_location"),
        dispatch=importlib.import_module("sglang.srt.eplb.expert_location_dispatch"),
    )


class Model:
    """A model class as their loader asks it."""

    hf_config = None

    @staticmethod
    def get_model_config_for_expert_location(config):
        return SimpleNamespace(num_layers=LAYERS, num_logical_experts=EXPERTS, num_groups=None)


def planned(tmp_path, shape):
    """A plan of three of the five decoder layers, and its file."""
    trace = synthetic_trace(tokens=600, layers=3, experts=EXPERTS, top_k=4, seed=2)
    trace = RoutingTrace(topk_ids=trace.topk_ids, num_experts=EXPERTS, layer_ids=PLANNED, request_ids=trace.request_ids)
    found = plan(trace, Topology.parse(shape), slots_per_device=SLOTS // RANKS)
    found.save(tmp_path / "plan.json")
    return found


@pytest.fixture
def sglang_plan(tmp_path):
    return planned(tmp_path, "2x2")


def load(sglang, placement, tmp_path, rank):
    """Their loader on our file, as `--init-expert-location` calls it."""
    path = tmp_path / "location.json"
    path.write_bytes(EXPORTERS["sglang"](SlotMap.of(placement), Hints(num_hidden_layers=LAYERS), ()).data)
    sglang.moe.init_expert_location = str(path)
    return sglang.location.compute_initial_expert_location_metadata(Model, moe_ep_rank=rank)


def hooked(monkeypatch, tmp_path):
    """Our plug-in in their registry."""
    monkeypatch.setenv(PLAN, str(tmp_path / "plan.json"))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    from grace_moe.engines.sglang import plugin as sglang_plugin

    sglang_plugin.register()
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
