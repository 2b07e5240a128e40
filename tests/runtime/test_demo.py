"""The demo, whole, on two ranks; and what it says when something is wrong."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cli import main
from grace_moe.demo import DemoOptions, run_demo
from grace_moe.demo.show import demo_sentence
from grace_moe.errors import UsageError, VerificationError


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


@pytest.fixture(scope="module")
def result(device):
    return run_demo(DemoOptions(topology="2x1", planning_requests=60, requests=8, prompt_tokens=24, new_tokens=4))


@pytest.mark.ranks(2)
def test_lossless_predicted_and_less_traffic(result):
    result.verify()
    assert [(r.method, r.dispatch) for r in result.rows][:2] == [("linear", "vanilla"), ("linear", "flat")]
    vanilla, contiguous, grace = result.rows[0], result.row("linear", "hierarchical"), result.row("grace", "hierarchical")
    assert grace.cross_node_bytes_per_token < contiguous.cross_node_bytes_per_token < 0.3 * vanilla.cross_node_bytes_per_token
    for row in result.rows:
        assert row.cross_node_bytes_per_token == pytest.approx(row.predicted_cross_node_bytes_per_token, rel=0.02)


@pytest.mark.ranks(2)
def test_json_has_the_fields_of_the_contract(result):
    value = json.loads(json.dumps(result.to_dict()))
    assert value["lossless"] is True
    assert value["topology"] == "2x1"
    fields = {"method", "dispatch", "cross_node_bytes_per_token", "predicted_cross_node_bytes_per_token", "load_max_over_mean"}
    fields |= {"slots_total_over_experts", "prefill_seconds", "decode_seconds_per_step"}
    assert all(fields <= set(row) for row in value["rows"])


@pytest.mark.ranks(2)
def test_a_wrong_result_is_said_and_fails(result):
    last = result.rows[-1]
    differing = replace(result, rows=(*result.rows[:-1], replace(last, same_tokens=False)))
    with pytest.raises(VerificationError, match="grace with hierarchical dispatch: not lossless: tokens differ"):
        differing.verify()
    assert "OUTPUTS DIFFER" in demo_sentence(differing)
    more_bytes = replace(last, cross_node_bytes_per_token=1.03 * last.predicted_cross_node_bytes_per_token)
    with pytest.raises(VerificationError, match="bytes a token crossed nodes"):
        replace(result, rows=(*result.rows[:-1], more_bytes)).verify()
    worse = replace(last, load_max_over_mean=9.0, cross_node_bytes_per_token=1e6)
    sentence = demo_sentence(replace(result, rows=(*result.rows[:-1], worse)))
    assert "% MORE between" in sentence
    assert "the balance is worse" in sentence


def test_topologies_that_the_demo_cannot_run():
    with pytest.raises(UsageError, match="3x1 has 3 devices; the demo runs 2, 4, 8, 16 processes"):
        run_demo(DemoOptions(topology="3x1"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["record", "/absent", "--text", "{text}", "-o", "{out}"], 5, "/absent: no such folder; give a model folder or hub id"),
        (
            ["record", "{dense}", "--text", "{text}", "-o", "{out}"],
            5,
            "'llama' has no experts that can be placed; give a Mixture-of-Experts model",
        ),
        (["record", "{cut}", "--text", "{text}", "-o", "{out}"], 5, "weights: can't be read"),
        (["record", "{cut}", "--text", "/absent", "-o", "{out}"], 2, "--text: /absent: No such file or directory; check the path"),
        (
            ["run", "{cut}", "--placement", "/absent.json", "--local", "2x2", "--prompt", "x"],
            3,
            "/absent.json: file: No such file or directory",
        ),
        (["run", "{cut}", "--placement", "/absent.json"], 2, "--prompt, --prompts, --text: give one of the three"),
    ],
)
def test_wrong_models_and_texts(capsys, tmp_path, arguments, code, message):
    from grace_moe.embedded import embedded_model

    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "cut").mkdir()
    for file in embedded_model().glob("*.json"):
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cut" / "model.safetensors").write_bytes((embedded_model() / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "text").write_text("some text")
    names = {n: tmp_path / n for n in ("dense", "cut", "text", "out")}
    got, _, err = call(capsys, *[a.format(**names) for a in arguments])
    assert got == code
    assert message in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
