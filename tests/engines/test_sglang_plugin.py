"""The plug-in of SGLang against stand-ins of its seams; `make contract` runs it against the package itself."""

import logging
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import SlotMap
from grace_moe.engines.live.live_plan import CHOICE, LivePlan, plan_from_environment
from grace_moe.engines.sglang import plugin as sglang_plugin
from grace_moe.engines.vllm import plugin as vllm_plugin
from tests.engines.plans import EXPERTS, HELD, SLOTS, placement


def original(tokens, slots, local, groups, nodes, algorithm):
    return "theirs"


def test_sglang_gets_all_decoder_layers(plan_path):
    hook = sglang_plugin.planned_rebalance(plan_from_environment(sglang_plugin.LOG))
    physical, logical, count = hook(original, torch.zeros(3, 5, EXPERTS, dtype=torch.int32), SLOTS, 2, None, 2, "auto")
    assert physical.shape == (5, SLOTS)
    assert (physical[[1, 3]].numpy() == SlotMap.of(placement()).physical_to_logical).all()
    assert physical[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert count.sum(dim=1).tolist() == [SLOTS] * 5
    for layer in range(5):
        for expert in range(EXPERTS):
            slots = [s for s in logical[layer, expert].tolist() if s >= 0]
            assert len(slots) == count[layer, expert]
            assert (physical[layer, slots] == expert).all()


def test_sglang_falls_back_and_says_so(plan_path, caplog, tmp_path, monkeypatch):
    hook = sglang_plugin.planned_rebalance(plan_from_environment(sglang_plugin.LOG))
    assert hook(original, torch.zeros(1, 3, EXPERTS), SLOTS, 2, None, 2, "auto") == "theirs"
    assert "SGLang has decoder layers 0..2" in caplog.text
    assert hook(original, torch.zeros(1, 5, EXPERTS), SLOTS, 4, None, 2, "auto") == "theirs"
    live = LivePlan(path=plan_path, replan=False, choice="", log=sglang_plugin.LOG, planned=np.array(HELD, dtype=np.int32))
    assert sglang_plugin.planned_rebalance(live)(original, torch.zeros(1, 5, EXPERTS), SLOTS, 2, None, 2, "auto") == "theirs"
    assert "without layer numbers" in caplog.text


def survivors(tokens, slots, groups, nodes, ranks, hierarchical, active):
    return "theirs"


@given(st.lists(st.sampled_from([0, 1]), min_size=4, max_size=6), st.booleans())
def test_dead_ranks_get_no_experts_and_every_expert_keeps_a_living_slot(active, replan):
    """Over which of four ranks are dead, with room for ranks that may join; one alone can't hold four experts in two slots. The plan may be
    one that follows loads: what it was before does not count then."""
    live = LivePlan(path=Path("plan.json"), replan=replan, choice="", log=sglang_plugin.LOG, planned=placement())
    hook = sglang_plugin.planned_survivors(live)
    loads = torch.arange(5 * EXPERTS).view(5, EXPERTS)
    hook(survivors, loads, SLOTS, None, 2, 4, False, torch.ones(4))
    maps = hook(survivors, loads.flip(1), SLOTS, None, 2, 4, False, torch.tensor(active))
    living = [rank for rank in range(4) if active[rank]]
    if len(living) < 2:
        assert maps == "theirs"
        return
    physical, logical, count = maps
    assert physical.shape == (5, SLOTS)
    for layer in range(5):
        slots_of = [[s for s in logical[layer, expert].tolist() if s >= 0] for expert in range(EXPERTS)]
        assert all(slots_of)
        assert [len(slots) for slots in slots_of] == count[layer].tolist()
        assert sorted(s for slots in slots_of for s in slots) == [s for s in range(SLOTS) if s // 2 in living]
        assert all((physical[layer, slots] == expert).all() for expert, slots in enumerate(slots_of))
    dead = [s for s in range(SLOTS) if s // 2 not in living]
    assert (physical[:, dead] == 0).all()
    if not dead and not replan:
        assert (physical[[1, 3]].numpy() == SlotMap.of(placement()).physical_to_logical).all()


def test_who_is_dead_is_in_the_log(plan_path, caplog):
    hook = sglang_plugin.planned_survivors(plan_from_environment(sglang_plugin.LOG))
    arguments = (torch.zeros(5, EXPERTS), SLOTS, None, 2, 4, False)
    hook(survivors, *arguments, torch.tensor([1, 0, 1, 1]))
    assert "without the ranks that are dead: 1" in caplog.text
    assert hook(survivors, *arguments, torch.tensor([0, 0, 0, 1])) == "theirs"
    assert "need 4 to 4 a device" in caplog.text
    assert hook(survivors, *arguments, torch.tensor([0, 0, 0, 0])) == "theirs"
    assert "all 4 devices are dead" in caplog.text


def test_the_elastic_balancer_is_asked_who_is_dead(plan_path):
    """It is hooked itself: the hook around the balancer must not plan for all ranks before."""
    hook = sglang_plugin.planned_rebalance(plan_from_environment(sglang_plugin.LOG))
    for name in ("elasticity_aware", "elasticity_aware_hierarchical"):
        assert hook(original, torch.zeros(1, 5, EXPERTS), SLOTS, 2, None, 2, Enum("EplbAlgorithm", [name])[name]) == "theirs"


def test_sglang_is_hooked_where_its_registry_is(plan_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    hooks = []
    registry = ModuleType("sglang.srt.plugins.hook_registry")
    registry.HookType = Enum("HookType", ["AROUND", "AFTER"])
    registry.HookRegistry = SimpleNamespace(register=lambda *arguments: hooks.append(arguments))
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", None)
    sglang_plugin.register()
    assert "has no hook registry" in caplog.text
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", registry)
    balancer = [(sglang_plugin.BALANCER, "AROUND"), (sglang_plugin.SURVIVORS, "AROUND")]
    table = ("sglang.srt.eplb.expert_location.ExpertLocationMetadata._init_raw", "AFTER")
    for choice, expected in (("theirs", balancer), ("", [*balancer, table]), ("near", [*balancer, table])):
        hooks.clear()
        monkeypatch.setenv(CHOICE, choice)
        sglang_plugin.register()
        assert [(target, kind.name) for target, _, kind in hooks] == expected
    hooks.clear()
    monkeypatch.setenv(CHOICE, "joint")
    sglang_plugin.register()
    assert len(hooks) == 7
    assert "sglang.srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical" in [target for target, _, _ in hooks]
    plan_path.write_text("[[0, 1, 2, 3, 0, 1, 2, 3]]")
    hooks.clear()
    sglang_plugin.register()
    assert [target for target, _, _ in hooks] == [target for target, _ in balancer]
    assert "is a slot map without layer numbers" in caplog.text


def test_both_are_entry_points():
    from importlib.metadata import entry_points

    for group, module in (("vllm.general_plugins", vllm_plugin), ("sglang.srt.plugins", sglang_plugin)):
        (point,) = (p for p in entry_points(group=group) if p.name == "grace_moe")
        assert point.load() is module.register
