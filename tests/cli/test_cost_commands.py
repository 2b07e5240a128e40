"""calibrate, diagnose, size and compare --model, in this process."""

import json
from pathlib import Path

import pytest

from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace
from tests.cli.failing import fails

TABLE = """system,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_avg_t_us,combine_avg_t_us
""" + "\n".join(f"h200_sxm,1,7168,{tokens},8,256,{10 + tokens / 5},{12 + tokens / 3}" for tokens in range(1, 40, 3))

CONFIG = {
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "intermediate_size": 4096,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def trace(folder) -> Path:
    path = folder / "t.safetensors"
    synthetic_trace(tokens=800, layers=2, experts=16, top_k=4, requests=40).save(path)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return path


def test_calibrate_stores_what_it_prints(folder, call):
    (folder / "low.csv").write_text(TABLE)
    code, out, _ = call("calibrate", "-o", "t.json", "low.csv", "--topology", "1x8", "--json")
    assert code == 0
    fits = json.loads(out)["fits"]
    assert [fit["backend"] for fit in fits] == ["deepep_low_latency"] * 2
    assert all({"what", "points", "median_error", "p95_error"} <= set(fit) for fit in fits)
    stored = Topology.parse("t.json")
    assert stored.hardware == "h200"
    assert stored.calibration["fits"] == fits
    out = call("calibrate", "-o", "t.json", "low.csv", "--topology", "1x8")[1]
    assert "t.json: calibrated as h200_sxm; use it as --topology" in out
    (folder / "low.csv").write_text(TABLE.replace("h200_sxm,1,7168,4,", "h200_sxm,1,7168,-4,"))
    assert fails(call, 3, "calibrate", "-o", "t.json", "low.csv").startswith(
        "low.csv: line 3, num_token: '-4' is not a number of at least 1"
    )


def test_diagnose_says_its_verdict_first(trace, call):
    arguments = ("diagnose", trace, "--topology", "2x2", "--model", "config.json")
    code, out, err = call(*arguments)
    assert code == 0, err
    assert out.split(":")[0] in ("worth it", "not worth it", "not enough evidence")
    found = json.loads(call(*arguments, "--json")[1])
    assert {"verdict", "reason", "milliseconds_per_layer", "memory_gb"} <= set(found)
    assert out.startswith(f"{found['verdict']}: ")
    assert len(found["milliseconds_per_layer"]["interval"]) == 2
    (trace.parent / "config.json").write_text(json.dumps(CONFIG | {"num_experts": 8}))
    assert "has 8 experts, but" in fails(call, 4, *arguments)


def test_size_sweeps_and_exports_the_factor(trace, call):
    arguments = ("--nodes", "1,2", "--redundancies", "1,1.5", "--batches", "64,4096", "--factor", "f.json", "--json")
    code, out, err = call("size", trace, "--topology", "1x2:h100-400g", "--model", "config.json", *arguments)
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert len(rows) == 8
    factors = json.loads(Path("f.json").read_text())
    assert [(row["ep_size"], row["redundancy"]) for row in factors] == [(2, 1.0), (2, 1.5), (4, 1.0), (4, 1.5)]
    assert all(0 < row["eplb_token_factor"] < 1.1 for row in factors)
    out = call("size", trace, "--topology", "1x2", "--nodes", "1", "--redundancies", "1", "--batches", "64")[1]
    assert "1x2" in out
    assert "Modelled, not measured" in " ".join(out.split())


def test_compare_takes_the_models_sizes(trace, call):
    arguments = ("compare", trace, "--topology", "2x2", "--methods", "linear")
    small = json.loads(call(*arguments, "--model", "config.json", "--json")[1])
    plain = json.loads(call(*arguments, "--json")[1])
    assert small["assumed"].endswith("on A100")
    assert "assumed" not in plain
    assert small["rows"][0]["modelled_dispatch_time"] < plain["rows"][0]["modelled_dispatch_time"]
    assert "OLMoE's sizes" in " ".join(call(*arguments)[1].split())


def test_plan_for_time_says_what_it_is_for(trace, call):
    arguments = ("plan", trace, "--topology", "2x2:h100-400g", "-o", "p.json", "--option", "effort=0.1")
    code, out, err = call(*arguments, "--phase", "decode", "--batch", "64", "--model", "config.json", "--backend", "flat", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["backend"], found["served"]["phase"], found["served"]["batch"]) == ("flat", "decode", 64)
    assert found["served"]["model"]["hidden_size"] == 512
    assert "served" not in json.loads(call(*arguments, "--json")[1])
    assert "backend 'nixl_ep' is unknown" in fails(call, 2, *arguments, "--phase", "decode", "--backend", "nixl_ep")
    assert "plans the same whatever is served" in fails(call, 2, *arguments[:-2], "--batch", "64", "--method", "eplb")
