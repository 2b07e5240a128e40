"""Our replica choice in vLLM's router: the kernel, by Triton's interpreter, against the reference and against NumPy's choice."""

import importlib.util
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("vllm")

import kernel_cases
from grace_moe.choice import choice_table
from grace_moe.engines.live.replica_choice import SEED
from grace_moe.engines.vllm import seams
from vllm_stand_ins import CONFIG, PLACEMENT, RANKS, route


@pytest.mark.shows("vllm", "joint", "modules")
@pytest.mark.shows("vllm", "near", "modules")
@pytest.mark.parametrize("top_k", kernel_cases.TOP_K)
@pytest.mark.parametrize("choice", kernel_cases.CHOICES)
@pytest.mark.parametrize("shape", kernel_cases.SHAPES)
def test_kernel_reference_and_numpy_choose_alike(shape, choice, top_k):
    kernel_cases.check(shape, choice, top_k, torch.device("cpu"))


COMPILE = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from grace_moe.engines.vllm.choice_kernel import _choose_and_record as kernel
types = dict.fromkeys(kernel.arg_names, "*i32") | dict.fromkeys(["hosts_ptr", "order_ptr", "price_ptr", "about_ptr", "step_ptr"], "*i64")
types |= {"record_ptr": "*i1", "experts": "i32"} | {name: "constexpr" for name in kernel.arg_names if name.isupper()}
for nodes, joint in ((4, True), (16, True), (4, False)):
    sizes = {"K": 8, "K_WIDTH": 8, "REPLICAS": 4, "NODES": nodes, "NODES_WIDTH": nodes, "SETS": 2**nodes if nodes <= 8 else 0}
    source = ASTSource(kernel, types, sizes | {"JOINT": joint, "PADDED": True})
    print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["cubin"]))
"""


def test_the_kernel_compiles_for_a_gpu():
    """To machine code of an H100, with the assembler that Triton brings; it is not run."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert all(int(size) > 1000 for size in result.stdout.split())


@pytest.mark.shows("vllm", "joint", "modules")
@pytest.mark.parametrize(
    ("choice", "backend", "policy"),
    [
        ("joint", "deepep_low_latency", "joint"),
        ("near", "deepep_high_throughput", "tar"),
        ("", "deepep_high_throughput", "joint"),
        ("", "deepep_low_latency", "tar"),
    ],
)
def test_its_router_takes_the_replicas_of_our_choice_and_records_them(state, choice, backend, policy):
    found = state(choice, all2all_backend=backend)
    of_model = found.model_states["hash"]
    table = found.policy.rebalance_experts(torch.zeros(4, 64), 80, 1, 2, RANKS, of_model.physical_to_logical_map)
    from vllm.distributed.eplb import eplb_state

    eplb_state._commit_eplb_maps(of_model, table)
    generator = np.random.default_rng(0)
    routed = 0
    for layer, tokens in ((0, 9), (3, 5)):
        ids = torch.from_numpy(np.argsort(generator.random((tokens + 2, 64)), axis=1)[:, :8]).int()  # two of them are padding
        found.prepare_forward(CONFIG, tokens)
        slots = route(found, layer, ids)
        numbers = np.arange(routed, routed + len(ids))
        devices = choice_table(PLACEMENT.layers[layer], PLACEMENT.topology, policy).choose(
            layer, ids.long().numpy(), np.full(len(ids), 1), numbers, seed=SEED
        )
        assert (slots.numpy() // 20 == devices).all()
        assert (table[layer][slots] == ids).all()
        load = of_model.expert_load_pass[layer]
        assert (load == torch.bincount(slots[:tokens].flatten(), minlength=80)).all()
        routed += tokens
    assert route(found, 1, ids, record=False).shape == ids.shape
    assert not of_model.expert_load_pass[1].any()


def test_it_chooses_before_the_plan_is_in_place_and_follows_layer_by_layer(state):
    """As asynchronous balancing commits, a layer at a time."""
    from vllm.distributed.eplb import eplb_state

    found = state("joint")
    of_model = found.model_states["hash"]
    found.prepare_forward(CONFIG, 4)
    ids = torch.arange(32, dtype=torch.int32).reshape(4, 8)
    natural = of_model.physical_to_logical_map.clone()
    table = found.policy.rebalance_experts(torch.zeros(4, 64), 80, 1, 2, RANKS, natural)
    for layer in range(4):
        eplb_state._commit_eplb_maps_for_layer(of_model, new_physical_to_logical_map=table[layer], layer=layer)
        for other in range(4):
            now = table if other <= layer else natural
            assert (now[other][route(found, other, ids)] == ids).all()


@pytest.mark.parametrize(("choice", "changes"), [("joint", {"all2all_backend": "allgather_reducescatter"}), ("theirs", {})])
def test_elsewhere_its_own_rule_stays_and_it_is_said(state, choice, changes, caplog_vllm):
    from vllm.model_executor.layers.fused_moe.router import base_router

    plain = base_router.eplb_map_to_physical_and_record
    state(choice, **changes)
    assert base_router.eplb_map_to_physical_and_record is plain
    assert ("vLLM chooses replicas by its own rule" in caplog_vllm.text) == (choice == "joint")


@pytest.fixture
def caplog_vllm(caplog):
    """vLLM's loggers don't propagate, where it has set them up."""
    logger = logging.getLogger("vllm")
    caplog.set_level(logging.INFO, logger="vllm")
    alone = not logger.propagate
    if alone:
        logger.addHandler(caplog.handler)
    yield caplog
    if alone:
        logger.removeHandler(caplog.handler)


def test_a_model_that_its_balancer_leaves_out_is_named(state, caplog_vllm):
    from vllm.v1.worker import gpu_model_runner

    class RoutedExperts(torch.nn.Module):
        pass

    state()
    assert "of-tests: the expert balancer follows" in caplog_vllm.text
    for _ in range(2):
        assert gpu_model_runner.get_mixture_of_experts_model(torch.nn.Sequential(RoutedExperts())) is None
    assert gpu_model_runner.get_mixture_of_experts_model(torch.nn.Linear(1, 1)) is None
    assert caplog_vllm.text.count("leaves Sequential out") == 1
    assert "leaves Linear out" not in caplog_vllm.text
    assert "--model-impl transformers" in caplog_vllm.text


@pytest.mark.parametrize("name", ["dbrx", "gpt_oss", "granitemoe", "jamba", "minimax_m2", "olmoe", "phimoe", "qwen2_moe"])
def test_models_of_the_page_are_none_of_its_balancers(name):
    folder = Path(importlib.util.find_spec("vllm").submodule_search_locations[0]) / "model_executor/models"
    assert "MixtureOfExperts" not in (folder / f"{name}.py").read_text()


def test_its_model_runner_tells_decode(state, monkeypatch):
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
    from vllm.v1.worker import gpu_model_runner

    seen = []
    monkeypatch.setattr(gpu_model_runner.GPUModelRunner, "execute_model", lambda self, scheduler_output: seen.append(chosen().decode))
    state("near")

    def chosen():
        return next(iter(seams._choices.values()))[0]

    cached = CachedRequestData.make_empty()
    cached.req_ids.append("a")
    cached.num_output_tokens.append(1)
    decode = SchedulerOutput.make_empty()
    decode.scheduled_cached_reqs, decode.num_scheduled_tokens = cached, {"a": 1}
    for step in (decode, replace(decode, num_scheduled_tokens={"a": 7})):
        gpu_model_runner.GPUModelRunner.execute_model(None, step)
    assert seen == [True, False]
