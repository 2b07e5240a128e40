"""Other models at the same seam: tiny random configurations, recorded and run on two ranks, against one process."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.runtime.job.generation import GenerationOptions, generate
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.recording import record_trace
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.topology import Topology

from .conftest import requests_of, scattered_with_replicas

OPTIONS = GenerationOptions(new_tokens=3, keep_logits=True, stop_at_eos=False)
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 0,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"moe_intermediate_size": 16, "n_routed_experts": 8, "first_k_dense_replace": 1}
ARCHITECTURES = {
    "Mixtral": {"num_local_experts": 8},
    "Qwen3Moe": {"moe_intermediate_size": 16, "num_experts": 8, "head_dim": 16},
    "DeepseekV2": {**LATENT, **ROUTED, "n_group": 1, "topk_group": 1},
    "DeepseekV3": {**LATENT, **ROUTED, "n_group": 2, "topk_group": 1},
    "GptOss": {"num_local_experts": 8, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "Glm4Moe": {**ROUTED, "n_group": 1, "topk_group": 1, "head_dim": 16},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SMALL, **ARCHITECTURES[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_recording_leaves_the_outputs_alone(folder):
    model, requests = load_whole_model(str(folder)), requests_of([4, 6, 5])
    plain = generate(model, requests, OPTIONS)
    trace, recorded = record_trace(model, requests, OPTIONS, name="tiny", dataset="random")
    assert trace.num_experts == 8
    assert trace.topk_ids.shape == (15 + 3 * 2, trace.num_layers, 2)
    assert (trace.topk_ids >= 0).all()
    for a, b in zip(plain.completions, recorded.completions, strict=True):
        assert torch.equal(a.logits, b.logits)


@pytest.mark.ranks(2)
def test_lossless_on_two_ranks(folder, two_ranks, tmp_path):
    """Replicas and unequal groups, hierarchical dispatch, three requests of unequal length."""
    model, requests = load_whole_model(str(folder)), requests_of([4, 6, 5])
    trace, reference = record_trace(model, requests, OPTIONS, name="tiny", dataset="random")
    rows = tuple(scattered_with_replicas(2)(e) for e in range(8))
    layers = tuple(LayerPlacement(layer_id=i, devices_of_expert=rows, replica_weights=even_weights(rows)) for i in trace.layer_ids)
    placement = Placement(topology=Topology.parse("2x1"), num_experts=8, layers=layers, replica_choice="joint")
    placement.save(tmp_path / "plan.json")
    run = RunSpec(name="run", placement=str(tmp_path / "plan.json"), dispatch="hierarchical")
    job = Job(model=str(folder), requests=requests, options=OPTIONS, runs=(run,), warm_up=False)
    (result,) = two_ranks.do(run_on_rank, job)[0]
    for ours, oracle in zip(result.completions, reference.completions, strict=True):
        assert ours.tokens == oracle.tokens
        torch.testing.assert_close(ours.logits, oracle.logits, atol=1e-4, rtol=0)
