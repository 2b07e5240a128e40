"""A family, or a checkpoint, for each way in which models of experts differ: recorded, and run on four ranks of one pool."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file

from grace_moe import Topology, plan
from grace_moe.placement import Placement
from grace_moe.runtime.job.recording import record_trace
from grace_moe.runtime.model.loading import load_whole_model
from tests.families.examination import OPTIONS, REQUESTS, examine
from tests.families.tiny import build
from tests.families.variants import as_fp8, as_mxfp4, with_further_layer
from tests.families.work import save, save_unequal
from tests.rank_pool import WorkError

pytestmark = pytest.mark.ranks

FAMILIES = {
    "fused dense weights": "kimi_linear",
    "image and text, a plan that shards more than experts": "gemma4",
    "a conversion of one tensor into several": "step3p7",
    "experts under other names in the checkpoint": "granitemoe",
    "a router that skips an expert": "zaya",
    "two modules of experts a layer": "ernie4_5_vl_moe",
    "adapter, identity experts": "longcat_flash",
    "adapter, weights before the expert": "llama4",
    "adapter, experts one below the other": "dbrx",
    "adapter, two modules": "jetmoe",
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_of_each_kind(kind, pool, tmp_path):
    outcome = examine(build(FAMILIES[kind], tmp_path / "model"), pool, tmp_path, dispatches=("hierarchical",))
    assert outcome.right, outcome


def test_top_1(pool, tmp_path):
    outcome = examine(build("olmoe", tmp_path / "model", num_experts_per_tok=1), pool, tmp_path)
    assert outcome.right, outcome
    assert outcome.top_k == 1


def test_layers_that_predict_further_tokens_are_left_out(pool, tmp_path):
    folder = build("deepseek_v3", tmp_path / "model")
    further = with_further_layer(folder, tmp_path / "further")
    outcome = examine(further, pool, tmp_path, dispatches=("hierarchical",), oracle=load_whole_model(str(folder)))
    assert outcome.right, outcome
    assert outcome.layers == 2


def test_fp8_means_what_its_blocks_say(pool, tmp_path):
    folder = build("deepseek_v3", tmp_path / "model")
    quantised, plain = as_fp8(folder, tmp_path / "fp8", tmp_path / "plain")
    outcome = examine(quantised, pool, tmp_path, dispatches=("hierarchical",), oracle=load_whole_model(str(plain)))
    assert outcome.right, outcome


def test_mxfp4_means_what_transformers_says(pool, tmp_path):
    folder = as_mxfp4(build("gpt_oss", tmp_path / "model"), tmp_path / "mxfp4")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outcome = examine(folder, pool, tmp_path, dispatches=("hierarchical",), oracle=oracle)
    assert outcome.right, outcome


def planned(folder, path) -> Placement:
    trace, _ = record_trace(load_whole_model(str(folder)), REQUESTS, OPTIONS, name="tiny", dataset="random")
    placement = plan(trace, Topology.parse("2x2"), redundancy=1.25)
    placement.save(path)
    return placement


@pytest.mark.parametrize("family", ["kimi_linear", "dbrx"])
def test_a_placed_model_is_saved_as_the_checkpoint_that_it_came_from(family, pool, tmp_path):
    folder = build(family, tmp_path / "model")
    planned(folder, tmp_path / "plan.json")
    pool.do(save, str(folder), str(tmp_path / "plan.json"), str(tmp_path / "saved"))
    wanted = load_file(folder / "model.safetensors")
    got = {name: value for file in (tmp_path / "saved").glob("*.safetensors") for name, value in load_file(file).items()}
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    ids = torch.tensor([REQUESTS[1].prompt])
    ours, theirs = (transformers.AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "saved", folder))
    with torch.no_grad():
        # Not to the bit: BLAS looks at where in memory a weight begins, and files differ in that.
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=0)
    with pytest.raises(WorkError, match="has a checkpoint already; give a new folder"):
        pool.do(save, str(folder), str(tmp_path / "plan.json"), str(tmp_path / "saved"))


def test_replicas_that_differ_are_not_saved(pool, tmp_path):
    folder = build("olmoe", tmp_path / "model")
    placement = planned(folder, tmp_path / "plan.json")
    expert = next(e for e, devices in enumerate(placement.layers[0].devices_of_expert) if len(devices) > 1)
    with pytest.raises(WorkError, match=r"the replicas of expert [0-9]+ differ; call finish_expert_gradients"):
        pool.do(save_unequal, str(folder), str(tmp_path / "plan.json"), str(tmp_path / "saved"), expert)
    assert not (tmp_path / "saved" / "model.safetensors.index.json").exists()
