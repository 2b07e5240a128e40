"""The plug-in of vLLM against stand-ins of its seams; `make contract` runs it against the package itself."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from grace_moe.engines import SlotMap
from grace_moe.engines.live.live_plan import CHOICE, PLAN, REPLAN, plan_from_environment
from grace_moe.engines.sglang import plugin as sglang_plugin
from grace_moe.engines.vllm import plugin as vllm_plugin
from grace_moe.engines.vllm import seams
from grace_moe.errors import PlacementError, UsageError
from tests.engines.plans import EXPERTS, HELD, LAYERS, RANKS, SLOTS, placement


class DefaultPolicy:
    """vLLM's default, by its seam: the contiguous map."""

    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None):
        return torch.arange(num_replicas).repeat(len(weight), 1) % weight.shape[1]


@pytest.fixture
def vllm(monkeypatch):
    """Stand-ins of the modules that the plug-in touches."""

    class EplbState:
        def __init__(self, parallel_config, device=None):
            self.parallel_config = parallel_config
            self.model_states = {}

        def add_model(self, model, model_config):
            self.model_states[model_config.compute_hash()] = model

        def update_mapping(self, model_config, expanded_physical_to_logical):
            commit(self.model_states[model_config.compute_hash()], expanded_physical_to_logical)

        def rearrange(self, is_profile=False, rank_mapping=None, use_last_expert_load=False):
            pass

        def prepare_forward(self, model_config, num_unpadded_tokens, ubatch_slices=None):
            pass

    def commit(model_state, new_physical_to_logical_map):
        model_state.physical_to_logical_map.copy_(new_physical_to_logical_map)

    def commit_layer(model_state, new_physical_to_logical_map, layer):
        model_state.physical_to_logical_map[layer].copy_(new_physical_to_logical_map)

    names = ["vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.eplb_state", "vllm.distributed.eplb.policy"]
    modules = {name: ModuleType(name) for name in [*names, "vllm.distributed.parallel_state"]}
    state, policy = modules["vllm.distributed.eplb.eplb_state"], modules["vllm.distributed.eplb.policy"]
    state.EplbState, state._commit_eplb_maps, state._commit_eplb_maps_for_layer = EplbState, commit, commit_layer
    state.compute_hash_cached = lambda model_config: model_config.compute_hash()
    state.current_platform = SimpleNamespace(is_rocm=lambda: True, name="rocm")
    policy.EPLB_POLICIES = {"default": DefaultPolicy}
    modules["vllm.distributed.eplb"].eplb_state = state
    modules["vllm.distributed.parallel_state"].get_ep_group = lambda: SimpleNamespace(rank_in_group=1, world_size=RANKS)
    modules["vllm.distributed.parallel_state"].get_node_count = lambda: 2
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(seams, "_choices", {})
    return SimpleNamespace(state=state, policies=policy.EPLB_POLICIES)


def call(policies, weight=None, slots=SLOTS, ranks=RANKS, nodes=2, old=None):
    weight = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64) if weight is None else weight
    return policies["default"].rebalance_experts(weight, slots, 1, nodes, ranks, old)


def test_without_a_plan_nothing_changes(vllm, monkeypatch):
    monkeypatch.delenv(PLAN, raising=False)
    vllm_plugin.register()
    assert vllm.policies == {"default": DefaultPolicy}
    sglang_plugin.register()


def test_the_policy_gives_the_plan_whatever_the_load_and_is_idempotent(vllm, plan_path):
    vllm_plugin.register()
    policy = vllm.policies["default"]
    vllm_plugin.register()
    assert vllm.policies["default"] is policy
    assert issubclass(policy, DefaultPolicy)
    expected = SlotMap.of(placement()).physical_to_logical
    for weight in (None, torch.randint(0, 100, (LAYERS, EXPERTS))):
        table = call(vllm.policies, weight)
        assert table.dtype == torch.int64
        assert table.device.type == "cpu"
        assert (table.numpy() == expected).all()
        table.numpy()[:] = 0  # vLLM owns what it was given


def test_experts_that_stay_keep_their_slots(vllm, plan_path):
    vllm_plugin.register()
    old = torch.tensor([[1, 0, 2, 1, 3, 2, 0, 3], [0, 0, 0, 0, 0, 0, 0, -1]])
    table = call(vllm.policies, old=old)
    assert table[0].tolist() == [1, 0, 2, 1, 3, 2, 0, 3]
    assert sorted(table[1][:2].tolist()) == [2, 3]


@pytest.mark.parametrize(
    ("weight", "arguments", "says"),
    [
        (torch.zeros(1, EXPERTS), {}, "2 MoE layers of 4 experts on 4 ranks, but the engine has 1 of 4 on 4"),
        (torch.zeros(LAYERS, 6), {}, "the engine has 2 of 6 on 4"),
        (None, {"ranks": 2}, "the engine has 2 of 4 on 2"),
        (None, {"slots": 9}, "9 slots are not divisible by 4 ranks"),
        (None, {"slots": 20}, "need 1 to 4 a device"),
    ],
)
def test_where_the_plan_does_not_fit_the_default_decides_and_it_is_said(vllm, plan_path, caplog, weight, arguments, says):
    vllm_plugin.register()
    slots = arguments.get("slots", SLOTS)
    table = call(vllm.policies, weight, **arguments)
    assert table[0].tolist() == [i % (EXPERTS if weight is None else weight.shape[1]) for i in range(slots)]
    assert says in caplog.text
    assert "own balancer decides instead" in caplog.text


def test_more_or_fewer_slots_are_filled_and_said(vllm, plan_path, caplog):
    caplog.set_level(logging.INFO)
    vllm_plugin.register()
    table = call(vllm.policies, slots=12).numpy()
    assert (np.sort(table.reshape(LAYERS, RANKS, 3), axis=2)[:, :, 1:] != np.sort(table.reshape(LAYERS, RANKS, 3), axis=2)[:, :, :-1]).all()
    assert "3 slots on every device took 8 replicas more" in caplog.text


def test_another_number_of_nodes_is_said(vllm, plan_path, caplog):
    vllm_plugin.register()
    assert (call(vllm.policies, nodes=1).numpy() == SlotMap.of(placement()).physical_to_logical).all()
    assert "is for 2x2, and the engine sees 1 nodes" in caplog.text


def test_a_map_from_export_is_a_plan_too(vllm, tmp_path, monkeypatch):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(HELD))
    monkeypatch.setenv(PLAN, str(path))
    vllm_plugin.register()
    assert (np.sort(call(vllm.policies).numpy().reshape(2, 4, 2)) == np.sort(np.array(HELD).reshape(2, 4, 2))).all()


def test_replanning_starts_from_the_map_that_serves(vllm, plan_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(REPLAN, "1")
    vllm_plugin.register()
    planned = torch.from_numpy(SlotMap.of(placement()).physical_to_logical.astype(np.int64))
    natural = torch.arange(SLOTS).repeat(LAYERS, 1) % EXPERTS
    loads = torch.tensor([[90_000, 1000, 1000, 1000], [1000, 1000, 1000, 1000]])
    ranks = (LAYERS, RANKS, -1)
    assert (call(vllm.policies, old=natural).reshape(ranks).sort().values == planned.reshape(ranks)).all()  # all-zero: profiling
    first = call(vllm.policies, loads, old=planned)
    assert (first == planned).all()  # one window is no ground
    second = call(vllm.policies, loads, old=first)
    assert (second[0] == 0).sum() > 2
    assert (second[1] == planned[1]).all()
    assert "slots change their expert" in caplog.text
    for _ in range(3):
        assert (call(vllm.policies, old=second) == second).all()  # idle


def test_rocm_applies_a_plan_whatever_it_gains_but_not_others_maps(vllm, plan_path):
    vllm_plugin.register()
    assert vllm.state.current_platform.is_rocm()
    call(vllm.policies)
    assert not vllm.state.current_platform.is_rocm()
    assert vllm.state.current_platform.name == "rocm"
    call(vllm.policies, slots=9)  # the plan doesn't fit: vLLM's own policy, and its own rule
    assert vllm.state.current_platform.is_rocm()


def test_an_old_or_new_vllm_is_left_alone(vllm, plan_path, monkeypatch, caplog):
    class Other:
        @classmethod
        def rebalance_experts(cls, weight, num_gpus):
            return None

    vllm.policies["default"] = Other
    vllm_plugin.register()
    assert vllm.policies["default"] is Other
    assert "takes other arguments" in caplog.text
    monkeypatch.setitem(sys.modules, "vllm.distributed.eplb.policy", None)
    vllm_plugin.register()
    assert "has no expert balancer" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (REPLAN, "yes", "GRACE_MOE_REPLAN='yes': set it to 1 or 0"),
        (CHOICE, "tar", "GRACE_MOE_CHOICE='tar': set it to near, joint or theirs"),
        ("GRACE_MOE_LOCAL_ROUTING", "1", "GRACE_MOE_LOCAL_ROUTING has gone; set GRACE_MOE_CHOICE=near"),
    ],
)
def test_bad_switches_are_refused(plan_path, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        plan_from_environment(vllm_plugin.LOG)


def test_a_plan_that_cannot_be_read_stops_the_engine(vllm, tmp_path, monkeypatch):
    monkeypatch.setenv(PLAN, str(tmp_path / "none.json"))
    with pytest.raises(PlacementError, match="No such file"):
        vllm_plugin.register()
    monkeypatch.setenv(PLAN, "")
    monkeypatch.setenv(CHOICE, "near")
    with pytest.raises(UsageError, match="is set without GRACE_MOE_PLAN"):
        vllm_plugin.register()
