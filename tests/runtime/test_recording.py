"""The recorder: exactly the router's choices, and outputs that don't change by a bit."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import numpy as np

from grace_moe.cli import main
from grace_moe.embedded import embedded_model
from grace_moe.errors import ModelError, UsageError
from grace_moe.runtime.job.generation import GenerationOptions, generate
from grace_moe.runtime.job.recording import record_trace, requests_from_text
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.runtime.model.recorder import recording
from grace_moe.trace import RoutingTrace
from tests.warm_python import Popen

from .conftest import EXPERTS, LAYERS, TOP_K, requests_of

OPTIONS = GenerationOptions(new_tokens=4, batch_size=3, stop_at_eos=False, keep_logits=True)


@pytest.fixture(scope="module", params=["grouped_mm", "eager", "batched_mm"])
def model(tiny_model, request):
    return load_whole_model(str(tiny_model), experts=request.param)


def test_outputs_are_unchanged_to_the_bit(model):
    requests = requests_of([5, 3, 8, 2])
    before = model.get_experts_implementation()
    plain = generate(model, requests, OPTIONS)
    _, recorded = record_trace(model, requests, OPTIONS, name="tiny", dataset="random")
    for a, b in zip(plain.completions, recorded.completions, strict=True):
        assert a.tokens == b.tokens
        assert torch.equal(a.logits, b.logits)
    assert model.get_experts_implementation() == before


def test_ids_and_weights_are_the_routers(model):
    """Hooks on the routers themselves are the oracle: one request, prefill then decode."""
    seen = {layer: [] for layer in range(LAYERS)}
    hooks = [
        model.model.layers[layer].mlp.gate.register_forward_hook(lambda _m, _i, out, layer=layer: seen[layer].append(out[1:]))
        for layer in range(LAYERS)
    ]
    trace, result = record_trace(model, requests_of([6]), OPTIONS, name="tiny", dataset="random")
    assert trace.token_ids.tolist() == [*requests_of([6])[0].prompt, *result.completions[0].tokens[:-1]]
    for hook in hooks:
        hook.remove()
    assert trace.topk_ids.shape == (6 + 3, LAYERS, TOP_K)
    assert trace.num_experts == EXPERTS
    assert trace.phase.tolist() == [0] * 6 + [1] * 3
    for layer in range(LAYERS):
        scores, ids = (torch.cat([step[i] for step in seen[layer]]).detach().numpy() for i in (0, 1))
        np.testing.assert_array_equal(trace.topk_ids[:, layer], ids)
        np.testing.assert_array_equal(trace.topk_weights[:, layer], scores.astype(np.float16))


def test_padding_is_not_recorded_and_requests_are_kept_apart(model):
    lengths = [5, 3, 8, 2]
    trace, _ = record_trace(model, requests_of(lengths), OPTIONS, name="tiny", dataset="random")
    assert [int((trace.request_ids == i).sum()) for i in range(4)] == [n + 3 for n in lengths]
    alone, _ = record_trace(model, requests_of(lengths)[2:3], OPTIONS, name="tiny", dataset="random")
    np.testing.assert_array_equal(trace.topk_ids[trace.request_ids == 2], alone.topk_ids)


def test_a_pass_that_nobody_announced_is_one_request(model):
    with recording(model) as recorder:
        model(torch.tensor([[5, 6, 7]]))
        model(torch.tensor([[8, 9]]))
    assert recorder.trace(model="tiny", dataset="x").topk_ids.shape[0] == 5


def test_nothing_recorded_is_an_error(model):
    with recording(model) as recorder, pytest.raises(ModelError, match="no forward pass"):
        recorder.trace(model="tiny", dataset="x")


class Letters:
    def encode(self, text):
        return [ord(c) for c in text]


def test_requests_are_dealt_over_the_texts():
    requests = requests_from_text(["aabbcc", "xxyy"], Letters(), tokens_per_request=2)
    assert ["".join(map(chr, r.prompt)) for r in requests] == ["aa", "xx", "bb", "yy", "cc"]
    assert [r.request_id for r in requests] == [0, 1, 2, 3, 4]
    assert len(requests_from_text(["aabbcc", "xxyy"], Letters(), tokens_per_request=2, max_requests=3)) == 3
    with pytest.raises(UsageError, match="no text has 9 tokens"):
        requests_from_text(["aabbcc"], Letters(), tokens_per_request=9)


RECORD = ["record", "{model}", "--text", "{text}", "--requests", "6", "--prompt-tokens", "8", "--new-tokens", "3", "--batch-size", "2"]
RECORD += ["--device", "cpu"]
KILLED = """
import os, signal, sys
import grace_moe.runtime.job.kept_recording as kept
from grace_moe.cli import main
record, batches = kept.record_trace, 0
def recorded(*arguments, **named):
    global batches
    batches += 1
    if batches == 3:
        os.kill(os.getpid(), signal.{signal})
    return record(*arguments, **named)
kept.record_trace = recorded
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
main(sys.argv[1:])
"""


def record(output, *more, script="from grace_moe.cli import main; import sys; main(sys.argv[1:])"):
    words = [word.format(model=embedded_model(), text=embedded_model() / "prose.txt") for word in RECORD]
    command = [sys.executable, "-c", script, *words, "-o", str(output), *more]
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, error = process.communicate(timeout=170)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> bytes:
    """The trace of the same command."""
    output = tmp_path_factory.mktemp("whole") / "trace.safetensors"
    assert record(output).returncode == 0
    return output.read_bytes()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--device", "cuda:99"), "'cuda:99' is no device of torch's here"),
        (("--device", "meta"), "'meta' is no device of torch's here"),
        (("--device", "gpu"), "'gpu' is no device of torch's here"),
        (("--engine", "vllm"), "vLLM takes its own"),
    ],
)
def test_a_device_that_is_not_there_or_has_no_effect_is_refused(tmp_path, capsys, more, problem):
    words = [word.format(model=embedded_model(), text=embedded_model() / "prose.txt") for word in RECORD]
    with pytest.raises(SystemExit) as end:
        main([*words, "-o", str(tmp_path / "trace.safetensors"), *more])
    assert end.value.code == 2
    assert f"--device: {problem}" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recording_runs_where_it_is_told_to(tmp_path):
    output = tmp_path / "trace.safetensors"
    done = record(output, "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert len(set(RoutingTrace.load(output).requests.tolist())) == 6


@pytest.mark.parametrize(("sent", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_killed_recording_is_resumed_to_the_same_bytes(uninterrupted, tmp_path, sent, code):
    """Killed in the third batch: after SIGKILL the first batch is there, after an interrupt both."""
    output, partial = tmp_path / "trace.safetensors", tmp_path / "trace.partial.safetensors"
    killed = record(output, script=KILLED.replace("{signal}", sent))
    assert killed.returncode == code, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    there = 2 if sent == "SIGKILL" else 4
    assert f"prose.txt (partial: {there} of 6 requests, " in RoutingTrace.load(partial).dataset
    assert ("go on with --resume" in killed.stderr) == (sent == "SIGINT")
    if sent == "SIGINT":
        other = record(output, "--resume", "--new-tokens", "2")
        assert other.returncode == 4
        assert "was not recorded by this command" in other.stderr
    assert record(output, "--resume").returncode == 0
    assert not partial.exists()
    assert output.read_bytes() == uninterrupted
