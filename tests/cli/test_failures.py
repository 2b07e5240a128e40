"""How the command line fails: in one line, with the code of its kind, and nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from grace_moe.cli import main
from grace_moe.errors import MissingExtraError, UsageError
from grace_moe.trace import synthetic_trace
from tests.cli.failing import fails


@pytest.fixture
def bad(trace, folder, call):
    """A folder of files, each with one fault."""
    whole = trace.read_bytes()
    Path("truncated.safetensors").write_bytes(whole[:-100])
    metadata = {"format": "grace-moe.trace", "version": "1", "num_experts": "16", "layer_ids": "[0]"}
    ids = {"topk_ids": np.zeros((4, 1, 1), np.int16)}
    Path("newer.safetensors").write_bytes(save(ids, metadata=metadata | {"version": "2"}))
    Path("range.safetensors").write_bytes(save({"topk_ids": np.full((4, 1, 1), 16, np.int16)}, metadata=metadata))
    synthetic_trace(tokens=20, layers=2, experts=8, top_k=2).save("other.safetensors")
    synthetic_trace(tokens=20, layers=1, experts=16, top_k=4).save("layers.safetensors")
    synthetic_trace(tokens=20, layers=2, experts=16, top_k=4, requests=1).save("one.safetensors")
    assert call("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "plan.json")[0] == 0
    value = json.loads(Path("plan.json").read_text())
    rows = value["layers"][1]["devices_of_expert"]
    for name, row, version in (("lost", [], 1), ("device", [4], 1), ("twice", [1, 1], 1), ("new", rows[5], 3)):
        rows[5] = row
        Path(f"{name}.json").write_text(json.dumps(value | {"version": version}))
    Path("garbage.json").write_bytes(b"\xff\x00")
    for name in ("empty.json", "empty"):
        Path(name).write_bytes(b"")
    Path("cluster.json").write_text('{"nodes": [{"devices": [{"relative_speed": "fast"}]}]}')
    return trace


FAILURES = [
    (3, "plan truncated.safetensors --topology 2x2", "truncated.safetensors: file: not a whole safetensors file"),
    (3, "compare truncated.safetensors --topology 2x2", "truncated.safetensors: file: not a whole safetensors file"),
    (3, "inspect truncated.safetensors", "it may be truncated: copy or record it again"),
    (3, "plan newer.safetensors --topology 2x2", "newer.safetensors: version: 2 is newer than 1; upgrade grace-moe"),
    (3, "plan range.safetensors --topology 2x2", "range.safetensors: topk_ids: expert id 16 is not in -1..15; check num_experts"),
    (3, "plan none.safetensors --topology 2x2", "none.safetensors: file: no such file; check the path"),
    (3, "plan plan.json --topology 2x2", "plan.json: file: not a whole safetensors file"),
    (3, "inspect lost.json", "lost.json: layer 1: devices_of_expert[5]: the expert is on no device; place every expert at least once"),
    (3, "inspect device.json", "device.json: layer 1: devices_of_expert[5]: names device 4; the topology has devices 0..3"),
    (3, "inspect twice.json", "has two replicas on one device (1, 1); keep at most one replica a device"),
    (3, "inspect new.json", "new.json: version: 3 is newer than 1; upgrade grace-moe"),
    (3, "inspect garbage.json", "garbage.json: file: not valid JSON"),
    (3, "inspect empty.json", "empty.json: file: not valid JSON"),
    (3, "inspect none.json", "none.json: file: No such file or directory; check the path"),
    (3, "inspect empty", "empty: file: not valid JSON"),
    (3, "inspect .", ".: topology: neither NxG nor a .json file"),
    (3, "inspect what", "what: topology: neither NxG nor a .json file"),
    (3, "inspect cluster.json", "cluster.json: nodes[0].devices[0].relative_speed: str is not a finite number"),
    (3, "plan TRACE --topology nonsense", "nonsense: topology: neither NxG nor a .json file; write 2x4 for 2 nodes of 4 devices"),
    (3, "plan TRACE --topology 0x2", "topology: shape: 0x2 is out of range; use NxG, such as 2x4"),
    (3, "plan TRACE --topology 999999x999999", "topology: shape: 999999x999999 is out of range"),
    (3, "plan TRACE --topology none.json", "none.json: file: No such file or directory"),
    (3, "plan TRACE --topology plan.json", "plan.json: topology.format: unknown key"),
    (3, "compare one.safetensors --topology 2x2", "one request can't be split in two halves; give a second trace to measure on"),
    (2, "plan TRACE --topology 2x2 --method best", "method 'best' is unknown; use one of grace, grace_paper"),
    (2, "compare TRACE --topology 2x2 --methods linear,best", "--methods: method 'best' is unknown; use one of grace, grace_paper"),
    (2, "compare TRACE --topology 2x2 --methods=", "--methods: method '' is unknown"),
    (2, "plan TRACE --topology 2x2 --redundancy 0.5", "redundancy 0.5 is out of range; use 1"),
    (2, "plan TRACE --topology 2x2 --redundancy nan", "redundancy nan is out of range"),
    (2, "plan TRACE --topology 2x2 --redundancy many", "'many' is neither a number nor auto"),
    (
        2,
        "plan TRACE --topology 2x2 --slots-per-device 3",
        "slots_per_device 3 on 4 devices leaves some of 16 experts without a slot; use at",
    ),
    (2, "plan TRACE --topology 2x2 --slots-per-device 8 --redundancy 2", "give one of them"),
    (2, "plan TRACE --topology 2x2 --seed=-1", "seed -1 is out of range"),
    (2, "plan TRACE --topology 2x2 --option wrong", "--option: 'wrong' is not NAME=VALUE; write it like r=0.15"),
    (2, "plan TRACE --topology 2x2 --option =3", "--option: '=3' is not NAME=VALUE"),
    (2, "plan TRACE --topology 2x2 --method grace_paper --option r=[1]", "--option: r='[1]' is not a number or a word"),
    (2, "plan TRACE --topology 2x2 --method grace_paper --option r=null", "--option: r='null' is not a number or a word"),
    (2, "plan TRACE --topology 2x2 --method grace_paper --option r=1e999", "--option: r='1e999' is not a number or a word"),
    (2, "plan TRACE --topology 2x2 --method grace_paper --option r=x", "r 'x' is out of range"),
    (2, "plan TRACE --topology 2x2 --option colour=red", "has no option 'colour'; it has"),
    (2, "plan TRACE --topology 2x2 --option seed=3", "--option: seed is not an option of a method; give --seed"),
    (2, "plan TRACE --topology 2x2 --option expert_bytes=5", "expert_bytes is not an option of a method; give --expert-bytes"),
    (2, "plan TRACE --topology 2x2 --option start=x", "--option: start is not an option of a method; give --start"),
    (2, "plan TRACE --topology 2x2 --option progress=1", "--option: progress is not an option of a method; leave it out"),
    (2, "plan TRACE --topology 2x2 --option topology=2x2", "--option: topology is not an option of a method; give --topology"),
    (
        4,
        "compare TRACE --eval other.safetensors --topology 2x2 --methods linear",
        "num_experts: 16, but other.safetensors has 8; use a trace of",
    ),
    (4, "compare TRACE --eval layers.safetensors --topology 2x2 --methods linear", "but layers.safetensors has 1 with ids [0]"),
    (
        1,
        "plan TRACE --topology 2x2 --method linear -o missing/p.json",
        "missing/p.json: can't be written: No such file or directory; check",
    ),
    (2, "run model --placement plan.json", "--prompt, --prompts, --text: give one of the three"),
]


@pytest.mark.parametrize(("code", "command", "text"), FAILURES, ids=[f"{c}" for _, c, _ in FAILURES])
def test_failures_are_one_line_with_the_code_of_their_kind_and_write_nothing(bad, folder, call, code, command, text):
    arguments = [str(bad) if word == "TRACE" else word for word in command.split(" ")]
    if arguments[0] == "plan" and "-o" not in arguments:
        arguments += ["-o", "new-plan.json"]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert text in fails(call, code, *arguments)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_failed_plan_leaves_the_old_one(bad, folder, call):
    old = Path("plan.json").read_bytes()
    fails(call, 3, "plan", "truncated.safetensors", "--topology", "2x2", "-o", "plan.json")
    assert Path("plan.json").read_bytes() == old


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nothing"], "No such option '--nothing'"),
        (["plan", "--nothing"], "No such option '--nothing'"),
        (["nothing"], "No such command 'nothing'"),
        (["plan"], "Missing argument 'TRACE'"),
        (["plan", "t.safetensors"], "Missing option '--topology'"),
        (["plan", "t.safetensors", "--topology", "2x2"], "Missing option '-o'"),
        (["plan", "t", "--topology", "2x2", "-o", "p", "--seed", "x"], "'x' is not a valid integer"),
        (["plan", "t", "--topology", "2x2", "-o", "p", "--slots-per-device", "0"], "0 is not in the range x>=1"),
        (["pareto", "t", "--topology", "2x2", "extra"], "Got unexpected extra argument"),
    ],
)
def test_misuse_is_told_by_click(call, arguments, text):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert text.replace("'", "") in err.splitlines()[-1].replace("'", "")
    assert "Traceback" not in err


def test_no_arguments_show_the_help(call):
    _, out, err = call()
    assert "demo" in out + err


def test_main_gives_each_error_its_own_code(call, monkeypatch):
    for error, code in ((UsageError("a\nb"), 2), (MissingExtraError("torch", "runtime"), 6)):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("grace_moe.cli.inspect.read_recording", fail)
        text = fails(call, code, "inspect", "t.safetensors")
        assert text == " ".join(str(error).splitlines())


def test_an_interrupt_is_130(call, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("grace_moe.cli.inspect.read_recording", interrupt)
    code, out, err = call("inspect", "t.safetensors")
    assert (code, out, err.strip()) == (130, "", "interrupted")


def test_errors_that_are_not_ours_are_not_hidden(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("grace_moe.cli.inspect.read_recording", fail)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "t.safetensors"])
