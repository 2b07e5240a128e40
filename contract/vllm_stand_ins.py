"""vLLM's own balancer in this process, on one rank of four, with our plug-in; and vLLM as it was, after a test that registers it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from grace_moe import Topology
from grace_moe.engines.live.live_plan import CHOICE, PLAN
from grace_moe.engines.vllm import plugin as vllm_plugin
from grace_moe.engines.vllm import seams
from grace_moe.placement import LayerPlacement, Placement

RANKS = 4


def equal_slots(layer_id):
    """64 experts on 2x2, 20 a rank: 16 of their own, and 4 of the next rank."""
    devices = tuple((e // 16, (e // 16 + 3) % 4) if e % 16 < 4 else (e // 16,) for e in range(64))
    weights = tuple((0.7, 0.3) if len(held) == 2 else (1.0,) for held in devices)
    return LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=weights)


PLACEMENT = Placement(
    topology=Topology.parse("2x2"), num_experts=64, layers=tuple(equal_slots(i) for i in range(4)), replica_choice="joint"
)


def parallel(**changes):
    """What vLLM's balancer and we ask of its parallel configuration."""
    eplb = SimpleNamespace(use_async=False, window_size=1, step_interval=100, policy="default", communicator="torch_gloo")
    values = {
        "tensor_parallel_size": 1,
        "data_parallel_size": RANKS,
        "use_sequence_parallel_moe": False,
        "all2all_backend": "deepep_high_throughput",
        "enable_elastic_ep": False,
        "num_ubatches": 1,
        "eplb_config": eplb,
    }
    return SimpleNamespace(**(values | changes))


class Model:
    """Four MoE layers as vLLM's balancer sees them."""

    num_routed_experts = num_logical_experts = 64
    num_redundant_experts, num_physical_experts, num_local_physical_experts = 16, 80, 20
    num_moe_layers, num_expert_groups = 4, 1

    def __init__(self):
        from vllm.distributed.eplb.eplb_state import EplbLayerState

        self.moe_layers = [SimpleNamespace(eplb_state=EplbLayerState()) for _ in range(4)]
        self.expert_weights = [[torch.zeros(20, 1)] for _ in range(4)]

    def set_eplb_state(self, load, slots, counts):
        for index, layer in enumerate(self.moe_layers):
            layer.eplb_state.set_layer_state(index, load, slots, counts)


def _wrapped():
    """What our plug-in wraps in vLLM: (owner, name)."""
    from vllm.distributed.eplb import eplb_state
    from vllm.model_executor.layers.fused_moe.router import base_router
    from vllm.model_executor.models import interfaces
    from vllm.v1.worker import gpu_model_runner

    wrapped = [(eplb_state.EplbState, name) for name in ("__init__", "add_model", "update_mapping", "prepare_forward", "rearrange")]
    wrapped += [(eplb_state, "_commit_eplb_maps"), (eplb_state, "_commit_eplb_maps_for_layer")]
    wrapped += [(base_router, "eplb_map_to_physical_and_record"), (gpu_model_runner.GPUModelRunner, "execute_model")]
    wrapped += [(interfaces, "get_mixture_of_experts_model"), (gpu_model_runner, "get_mixture_of_experts_model")]
    return [*wrapped, (eplb_state, "current_platform")]


@pytest.fixture
def vllm_put_back(monkeypatch):
    """After the test all that our plug-in wraps in vLLM is vLLM's again, so that a later test does not meet the wrappers of this one."""
    from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

    monkeypatch.setitem(EPLB_POLICIES, "default", DefaultEplbPolicy)
    monkeypatch.setattr(seams, "_choices", {})
    for owner, name in _wrapped():
        monkeypatch.setattr(owner, name, getattr(owner, name))


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_wrapped():
    """After each file of tests, whatever it did, vLLM in this process is its own again."""
    yield
    if "vllm.v1.worker.gpu_model_runner" in sys.modules:
        found = {name: getattr(owner, name) for owner, name in _wrapped()}
        ours = [name for name, value in found.items() if _home(value) == "grace_moe"]
        assert not ours, f"left wrapped: {', '.join(ours)}"


def _home(value):
    """The package that a function, or else the type of a value, comes from."""
    return getattr(value, "__module__", type(value).__module__).partition(".")[0]


@pytest.fixture
def state(tmp_path, monkeypatch, vllm_put_back):
    """vLLM's own balancer on rank 1 of 2x2, with the plug-in, as `state(choice, **parallel)`."""
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_state

    path = tmp_path / "plan.json"
    PLACEMENT.save(path)
    monkeypatch.setenv(PLAN, str(path))
    group = SimpleNamespace(rank_in_group=1, world_size=RANKS)
    for module in (eplb_state, parallel_state):
        monkeypatch.setattr(module, "get_ep_group", lambda: group)
        monkeypatch.setattr(module, "get_node_count", lambda: 2)
    monkeypatch.setattr(eplb_state, "get_eplb_group", lambda: None)
    monkeypatch.setattr(eplb_state, "create_eplb_communicator", lambda **_: None)

    def make(choice="", **changes):
        monkeypatch.setenv(CHOICE, choice)
        vllm_plugin.register()
        found = eplb_state.EplbState(parallel(**changes), torch.device("cpu"))
        found.add_model(Model(), CONFIG)
        return found

    return make


CONFIG = SimpleNamespace(model="of-tests", compute_hash=lambda: "hash")


def route(state, layer, ids, record=True):
    """What vLLM's router does with the experts of a rank's tokens."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    class Router(BaseRouter):
        def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
            return torch.ones(ids.shape), ids

        routing_method_type = None

    of_layer = state.model_states["hash"].model.moe_layers[layer].eplb_state
    state.should_record_tensor.fill_(record)
    return Router(top_k=8, global_num_experts=80, eplb_state=of_layer).select_experts(None, None)[1]
