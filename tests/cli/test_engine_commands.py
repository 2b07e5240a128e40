"""`import` and `export` as a user calls them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from grace_moe import plan
from grace_moe.cli import grace_moe
from grace_moe.errors import GraceError
from grace_moe.placement import Placement
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace


def call(*arguments):
    result = CliRunner().invoke(grace_moe, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "t.safetensors"
    synthetic_trace(tokens=300, layers=2, experts=16, top_k=4).save(path)
    return path


@pytest.fixture
def placement(tmp_path, trace):
    path = tmp_path / "plan.json"
    plan(RoutingTrace.load(trace), Topology.parse("2x2"), "grace_paper").save(path)
    return path


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "deepseek_v3", "first_k_dense_replace": 0, "num_hidden_layers": 2, "num_experts": 16}
    config |= {"num_experts_per_tok": 4, "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "vllm-ascend"])
def test_from_plan_to_engine_and_back(tmp_path, placement, trace, model, engine):
    out = tmp_path / "engine.map"
    told = json.loads(
        call("export", placement, "--engine", engine, "-o", out, "--trace", trace, "--model", model, "--slots-per-device", 6, "--json")
    )
    assert (told["ranks"], told["slots_per_device"], told["num_slots"], told["num_redundant_experts"]) == (4, 6, 24, 8)
    assert str(out) in told["launch"]
    assert told["predicted"]["nearest replica"]["cross_node_copies"] < told["predicted"]["any replica"]["cross_node_copies"]
    back = tmp_path / "back.json"
    text = call("import", "--engine", engine, out, "--topology", "2x2", "--model", model, "-o", back)
    assert "2 MoE layers of 16 experts on 2x2, 6 slots a device" in text
    again = tmp_path / "again.map"
    call("export", back, "--engine", engine, "-o", again, "--model", model)
    assert again.read_bytes() == out.read_bytes()
    assert Placement.load(back).provenance["engine"] == engine


def test_what_it_prints(tmp_path, placement, trace, model):
    text = call("export", placement, "--engine", "tensorrt-llm", "-o", tmp_path / "m.yaml", "--trace", trace, "--model", model)
    assert "replayed, nearest replica:" in text
    assert "note: TensorRT-LLM takes an expert's replicas in turn" in text
    assert "moe_config:" in text
    assert "note: 2 nodes: rank r is on node r // 2; add the engine's own flags" in text
    assert "\n  2: [0, 1" in (tmp_path / "m.yaml").read_text()  # the layer after the decoder's


LAUNCHES = {
    "vllm": "GRACE_MOE_PLAN={plan} vllm serve {model} --data-parallel-size 4 --enable-expert-parallel --enable-eplb",
    "sglang": "python -m sglang.launch_server --model-path {model} --tp-size 4 --ep-size 4 ",
    "tensorrt-llm": "moe_config:\n  load_balancer: {plan}\n# then: trtllm-serve {model} ",
    "vllm-ascend": '"expert_map_path": "{plan}"',
}


@pytest.mark.parametrize("engine", LAUNCHES)
def test_the_launch_line_names_the_files(tmp_path, placement, model, engine):
    out = tmp_path / "PLAN of MODEL" if engine == "sglang" else tmp_path / "out"
    launch = json.loads(call("export", placement, "--engine", engine, "-o", out, "--model", model, "--json"))["launch"]
    assert LAUNCHES[engine].format(plan=out, model=model) in launch
    if engine == "sglang":
        assert f"--init-expert-location '{out}' " in launch


def test_loads_for_vllm(tmp_path, placement, trace):
    call("export", placement, "--engine", "vllm", "-o", tmp_path / "m.json", "--trace", trace, "--loads", tmp_path / "l.npy")
    assert np.load(tmp_path / "l.npy").sum(axis=1).tolist() == [1200, 1200]


def test_import_of_a_recording(tmp_path):
    ids = np.argsort(np.random.default_rng(0).random((20, 2, 16)), axis=2)[:, :, :4]
    np.save(tmp_path / "r.npy", ids.astype(np.uint8))
    out = tmp_path / "t.safetensors"
    text = call("import", "--engine", "vllm", tmp_path / "r.npy", "--num-experts", 16, "--name", "tiny", "-o", out)
    assert "20 tokens, 2 MoE layers of 16 experts, top-4" in text
    assert RoutingTrace.load(out).model == "tiny"
    told = json.loads(call("import", "--engine", "vllm", tmp_path / "r.npy", "--num-experts", 16, "--layers", "1", "-o", out, "--json"))
    assert (told["tokens"], told["layers"], told["requests"], told["counts_only"]) == (20, 1, 1, False)
    assert json.loads(call("inspect", out, "--json"))["tells"] == "each token's experts"


def test_counts_say_so_everywhere(tmp_path):
    np.savez(tmp_path / "c.npz", expert_load=np.arange(1, 33).reshape(2, 16))
    out = tmp_path / "t.safetensors"
    assert "note: counts only" in call("import", "--engine", "npz", tmp_path / "c.npz", "-o", out)
    assert "not which fire" in json.loads(call("inspect", out, "--json"))["tells"]
    assert "note: the trace has counts only" in call("plan", out, "--topology", "2x2", "-o", tmp_path / "p.json")


def test_what_is_left_out_and_skipped_is_printed(tmp_path):
    ids = np.argsort(np.random.default_rng(0).random((30, 2, 16)), axis=2)[:, :, :4]
    ids[:6], ids[25:] = ids[0], -1
    np.savez(tmp_path / "r.npz", topk_ids=ids, num_experts=16)
    out = tmp_path / "t.safetensors"
    text = call("import", "--engine", "npz", tmp_path / "r.npz", "-o", out)
    assert "note: 5 of 30 tokens are left out: 5 that no layer recorded a choice of" in text
    assert "--skip-tokens 6 leaves them out" in text
    told = json.loads(call("import", "--engine", "npz", tmp_path / "r.npz", "--skip-tokens", 6, "-o", out, "--json"))
    assert (told["tokens"], told["notes"]) == (19, ["5 of 24 tokens are left out: 5 that no layer recorded a choice of"])


def test_a_surrogate_says_so_everywhere(tmp_path):
    heat = [8, 8, 4, 4]
    profile = {"k": 2, "layers": [{"heat": heat, "pairs": [[0, 1, 7, 1.5]]}]}
    (tmp_path / "p.json").write_text(json.dumps(profile))
    out = tmp_path / "t.safetensors"
    assert "note: a surrogate: 4,096 tokens drawn" in call("import", "--engine", "loads", tmp_path / "p.json", "-o", out)
    assert "drawn to match" in json.loads(call("inspect", out, "--json"))["tells"]
    call("plan", out, "--topology", "1x2", "--method", "linear", "-o", tmp_path / "p.json")
    assert Placement.load(tmp_path / "p.json").provenance["trace"]["surrogate"] is True
    with pytest.raises(GraceError, match="a surrogate, drawn to match counts of pairs"):
        call("compare", out, "--topology", "1x2", "--methods", "linear")


BAD = [
    (("export", "P", "--engine", "vllm", "-o", "m", "--loads", "l.npy"), "--loads: with --engine vllm and --trace"),
    (("export", "P", "--engine", "sglang", "-o", "m", "--extra-layers", "2"), "sglang takes none"),
    (("export", "P", "--engine", "tensorrt-llm", "-o", "m", "--extra-layers", "x"), "'x' is not a layer"),
    (("export", "P", "--engine", "tensorrt-llm", "-o", "m", "--extra-layers", "2,2"), "or one twice"),
    (("export", "P", "--engine", "vllm", "-o", "m", "--slots-per-device", "3"), "need 4 to 16 a device"),
    (("export", "P", "--engine", "sglang", "-o", "m", "--num-hidden-layers", "1"), "plans layer 1"),
    (("import", "--engine", "vllm-ascend", "P", "-o", "m"), "records as vllm does"),
    (("import", "--engine", "npz", "P", "--topology", "2x2", "-o", "m"), "one slot map of vllm"),
    (("import", "--engine", "vllm", "P", "-o", "m"), "give --model with the model's config.json, or --num-experts"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_refusals(tmp_path, placement, arguments, says):
    with pytest.raises(GraceError, match=says):
        call(*(placement if a == "P" else tmp_path / a if a in ("m", "l.npy") else a for a in arguments))
    assert not (tmp_path / "m").exists()


def test_a_plan_of_another_model_is_refused(tmp_path, placement, model):
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 5}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(GraceError, match=r"2 layers of 16 experts, but .* has 5 of 16"):
        call("export", placement, "--engine", "vllm", "--model", model, "-o", tmp_path / "m")
