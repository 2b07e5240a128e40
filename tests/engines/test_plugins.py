"""The plug-ins of vLLM and SGLang against stand-ins of their seams; `make contract` runs them against the packages themselves."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import SlotMap, equalise, sglang_plugin, vllm_plugin
from grace_moe.engines.equaliser import rebalance
from grace_moe.engines.live_plan import LOCAL_ROUTING, PLAN, REPLAN, LivePlan, choices_of_rank, plan_from_environment
from grace_moe.engines.slots import keep_slots
from grace_moe.errors import PlacementError, UsageError
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from tests.engines.samples import placements

LAYERS, EXPERTS, SLOTS, RANKS = 2, 4, 8, 4
HELD = [[0, 1, 1, 2, 2, 3, 3, 0], [3, 2, 1, 0, 0, 1, 2, 3]]


def placement(layer_ids=(1, 3), weights=None, shape="2x2"):
    layers = []
    for layer_id, row in zip(layer_ids, HELD, strict=True):
        devices = tuple(tuple(slot // 2 for slot in range(SLOTS) if row[slot] == expert) for expert in range(EXPERTS))
        layers.append(LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=weights or even_weights(devices)))
    return Placement(topology=Topology.parse(shape), num_experts=EXPERTS, layers=tuple(layers))


@pytest.fixture
def plan_path(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    placement().save(path)
    monkeypatch.setenv(PLAN, str(path))
    return path


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

    def compute_logical_maps(rows, experts):
        flat = rows.reshape(-1, rows.shape[-1])
        tables = [[[i for i, e in enumerate(row.tolist()) if e == expert] for expert in range(experts)] for row in flat]
        width = max(len(slots) for table in tables for slots in table)
        whole = torch.tensor([[slots + [-1] * (width - len(slots)) for slots in table] for table in tables])
        counts = torch.tensor([[len(slots) for slots in table] for table in tables])
        return (whole[0], counts[0]) if rows.dim() == 1 else (whole, counts)

    names = ["vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.eplb_state", "vllm.distributed.eplb.policy"]
    modules = {name: ModuleType(name) for name in [*names, "vllm.distributed.parallel_state"]}
    state, policy = modules["vllm.distributed.eplb.eplb_state"], modules["vllm.distributed.eplb.policy"]
    state.EplbState, state.compute_logical_maps = EplbState, compute_logical_maps
    policy.EPLB_POLICIES = {"default": DefaultPolicy}
    modules["vllm.distributed.eplb"].eplb_state = state
    modules["vllm.distributed.parallel_state"].get_ep_group = lambda: SimpleNamespace(rank_in_group=1)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_plugin, "_config", [])
    monkeypatch.setattr(vllm_plugin, "_lately", {})
    return SimpleNamespace(state=state, policies=policy.EPLB_POLICIES)


def config(**changes):
    values = {
        "tensor_parallel_size": 1,
        "data_parallel_size": 4,
        "use_sequence_parallel_moe": False,
        "all2all_backend": "deepep_low_latency",
    }
    return SimpleNamespace(**(values | changes))


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


def test_replanning_follows_the_load_and_is_the_same_on_every_rank(vllm, plan_path, monkeypatch):
    monkeypatch.setenv(REPLAN, "1")
    vllm_plugin.register()
    loads = torch.tensor([[1000, 10, 10, 10], [10, 10, 10, 10]])
    table = call(vllm.policies, loads)
    assert (table == call(vllm.policies, loads)).all()
    assert (table[0] == 0).sum() > 2
    assert (table[1].numpy() == SlotMap.of(placement()).physical_to_logical[1]).all()
    assert (call(vllm.policies).numpy() == SlotMap.of(placement()).physical_to_logical).all()  # all-zero: profiling


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


@pytest.mark.parametrize(("name", "value"), [(REPLAN, "yes"), (LOCAL_ROUTING, "2")])
def test_bad_switches_are_refused(plan_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}='{value}': set it to 1 or 0"):
        plan_from_environment()


def test_a_plan_that_cannot_be_read_stops_the_engine(vllm, tmp_path, monkeypatch):
    monkeypatch.setenv(PLAN, str(tmp_path / "none.json"))
    with pytest.raises(PlacementError, match="No such file"):
        vllm_plugin.register()
    monkeypatch.setenv(PLAN, "")
    monkeypatch.setenv(LOCAL_ROUTING, "1")
    with pytest.raises(UsageError, match="is set without GRACE_MOE_PLAN"):
        vllm_plugin.register()


# Near replicas


def test_near_replicas_by_hand():
    """Layer 1: expert 0 is on devices 0 (node 0) and 3 (node 1); expert 3 on 2 and 3, with weights 3/4 and 1/4."""
    even = even_weights(placement().layers[0].devices_of_expert)
    layer = placement(weights=(*even[:3], (0.75, 0.25))).layers[0]
    row, topology = np.array(HELD[0], dtype=np.int32), Topology.parse("2x2")
    assert choices_of_rank(layer, row, topology, 0, 64) == [[0], [1], [3], [5, 5, 5, 6]]  # 2 is on 1 and 2, 1 is near; 3 is away
    assert choices_of_rank(layer, row, topology, 1, 64) == [[0], [2], [3], [5, 5, 5, 6]]
    assert choices_of_rank(layer, row, topology, 2, 64) == [[7], [1, 2], [4], [5]]
    assert choices_of_rank(layer, row, topology, 3, 64) == [[7], [1, 2], [4], [6]]


@given(placements(), st.integers(1, 64))
def test_every_choice_is_a_slot_of_the_expert_and_the_nearest(placed, width):
    placed = equalise(placed).placement
    slots, topology = SlotMap.of(placed), placed.topology
    for index, layer in enumerate(placed.layers):
        row = slots.physical_to_logical[index]
        for rank in range(topology.num_devices):
            for expert, turns in enumerate(choices_of_rank(layer, row, topology, rank, width)):
                assert 1 <= len(turns) <= width + len(layer.devices_of_expert[expert])
                devices = {slot // slots.slots_per_rank for slot in turns}
                assert all(row[slot] == expert for slot in turns)
                held = layer.devices_of_expert[expert]
                near = [d for d in held if topology.node_of_device[d] == topology.node_of_device[rank]]
                assert devices == ({rank} if rank in held else set(near or held))


def test_each_rank_gets_its_own_table_where_it_routes_its_own_tokens(vllm, plan_path, monkeypatch):
    monkeypatch.setenv(LOCAL_ROUTING, "1")
    plain = vllm.state.compute_logical_maps
    vllm_plugin.register()
    vllm.state.EplbState(config())
    rows = call(vllm.policies)
    whole, counts = vllm.state.compute_logical_maps(rows, EXPERTS)
    assert counts.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1]]  # by hand, rank 1: of layer 1 only expert 3 is away, on both devices there
    assert whole[0, 0].tolist()[0] == 0
    one, count = vllm.state.compute_logical_maps(rows[0], EXPERTS)
    assert (one == whole[0]).all()
    assert (count == counts[0]).all()
    other = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])  # a map that is not of the plan
    assert (vllm.state.compute_logical_maps(other, EXPERTS)[0] == plain(other, EXPERTS)[0]).all()
    mixed = vllm.state.compute_logical_maps(torch.stack([rows[0], other]), EXPERTS)
    assert mixed[1].tolist() == [[1, 1, 1, 2], [2, 2, 2, 2]]


@pytest.mark.parametrize(
    "changes",
    [
        {"all2all_backend": "allgather_reducescatter"},
        {"data_parallel_size": 1},
        {"tensor_parallel_size": 2},
        {"prefill_context_parallel_size": 2},
    ],
)
def test_where_ranks_must_agree_they_do_and_it_is_said(vllm, plan_path, monkeypatch, caplog, changes):
    monkeypatch.setenv(LOCAL_ROUTING, "1")
    plain = vllm.state.compute_logical_maps
    vllm_plugin.register()
    vllm.state.EplbState(config(**changes))
    rows = call(vllm.policies)
    assert (vllm.state.compute_logical_maps(rows, EXPERTS)[0] == plain(rows, EXPERTS)[0]).all()
    assert "GRACE_MOE_LOCAL_ROUTING has no effect" in caplog.text


def test_sequence_parallel_layers_route_their_own_tokens():
    assert vllm_plugin.routes_own_tokens(config(tensor_parallel_size=2, use_sequence_parallel_moe=True))


# Slots that stay


@given(placements(), st.randoms(use_true_random=False))
def test_kept_slots_hold_the_same_experts_on_every_rank(placed, random):
    slots = SlotMap.of(equalise(placed).placement)
    old = slots.physical_to_logical.copy()
    for row in old:
        random.shuffle(row)
    kept = keep_slots(slots.physical_to_logical, old, slots.num_ranks)
    shape = (len(kept), slots.num_ranks, -1)
    assert (np.sort(kept.reshape(shape)) == np.sort(slots.physical_to_logical.reshape(shape))).all()
    for now, before in zip(kept.reshape(-1, slots.slots_per_rank), old.reshape(-1, slots.slots_per_rank), strict=True):
        assert all(now[i] == before[i] for i in range(len(now)) if before[i] in now and list(before[:i]).count(before[i]) == 0)
    assert (keep_slots(kept, old[:, :0], slots.num_ranks) == kept).all()


# Re-planning


@given(placements(), st.data())
def test_rebalancing_keeps_slots_and_experts(placed, data):
    equal = equalise(placed).placement
    loads = np.array(
        [data.draw(st.lists(st.integers(0, 99), min_size=placed.num_experts, max_size=placed.num_experts)) for _ in placed.layers]
    )
    again = rebalance(equal, loads)
    assert (again.slots_per_device() == equal.slots_per_device()).all()
    assert rebalance(equal, loads) == again


def test_rebalancing_by_hand():
    """1x2, three slots each: both hold 0 and 1, and 2 has 80 of 100. Devices compute 85.5 and 14.5. By hand: 2 in the slot of 0 on device 1 makes
    50.5 and 49.5, in that of 1 it makes 45.5 and 54.5."""
    devices = ((0, 1), (0, 1), (0,), (1,))
    layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    before = Placement(topology=Topology.parse("1x2"), num_experts=4, layers=(layer,))
    after = rebalance(before, np.array([[10, 1, 80, 9]])).layers[0].devices_of_expert
    assert after == ((0,), (0, 1), (0, 1), (1,))


# SGLang


def original(tokens, slots, local, groups, nodes, algorithm):
    return "theirs"


def test_sglang_gets_all_decoder_layers(plan_path):
    hook = sglang_plugin.planned_rebalance(plan_from_environment())
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
    hook = sglang_plugin.planned_rebalance(plan_from_environment())
    assert hook(original, torch.zeros(1, 3, EXPERTS), SLOTS, 2, None, 2, "auto") == "theirs"
    assert "SGLang has decoder layers 0..2" in caplog.text
    assert hook(original, torch.zeros(1, 5, EXPERTS), SLOTS, 4, None, 2, "auto") == "theirs"
    live = LivePlan(path=plan_path, replan=False, local_routing=False, planned=np.array(HELD, dtype=np.int32))
    assert sglang_plugin.planned_rebalance(live)(original, torch.zeros(1, 5, EXPERTS), SLOTS, 2, None, 2, "auto") == "theirs"
    assert "without layer numbers" in caplog.text


def test_sglang_is_hooked_where_its_registry_is(plan_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    hooks = []
    registry = ModuleType("sglang.srt.plugins.hook_registry")
    registry.HookType = SimpleNamespace(AROUND="around")
    registry.HookRegistry = SimpleNamespace(register=lambda *arguments: hooks.append(arguments))
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", None)
    sglang_plugin.register()
    assert "has no hook registry" in caplog.text
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", registry)
    monkeypatch.setenv(LOCAL_ROUTING, "1")
    sglang_plugin.register()
    assert [(target, kind) for target, _, kind in hooks] == [("sglang.srt.eplb.eplb_algorithms.rebalance_experts", "around")]
    assert "is vLLM's" in caplog.text


def test_both_are_entry_points():
    from importlib.metadata import entry_points

    for group, module in (("vllm.general_plugins", vllm_plugin), ("sglang.srt.plugins", sglang_plugin)):
        (point,) = (p for p in entry_points(group=group) if p.name == "grace_moe")
        assert point.load() is module.register
