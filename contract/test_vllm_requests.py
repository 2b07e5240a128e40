"""vLLM's own OpenAI server on two data-parallel ranks, with our front-end before it: each request is served by the rank that it was sent to."""

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vllm")

from grace_moe import Topology, plan
from serving.fixtures import NEW_TOKENS
from serving.rank import EPLB

SECONDS = 300
"""For the server to start, and for an answer."""


@contextmanager
def front_end(*arguments, log):
    """`grace-moe front` as a process. Gives its id."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "grace_moe", "front", *map(str, arguments)], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()


def until(question, pid, log):
    """The first true answer. Fails where the process ends first, or time is up, with what it said last."""
    end, ended = time.monotonic() + SECONDS, os.pidfd_open(pid)
    try:
        while not (answer := question()):
            if select.select([ended], [], [], 0.2)[0] or time.monotonic() > end:
                pytest.fail(log.read_text(errors="replace")[-5000:])
    finally:
        os.close(ended)
    return answer


def get(url):
    """The text behind an address, None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.status == 200 and (answer.read().decode() or "ok")
    except (urllib.error.URLError, ConnectionError):
        return None


def post(url, fields):
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def of_engines(metrics, name):
    """`[R]` a counter of vLLM's, by its data-parallel engine."""
    found = [0, 0]
    for engine, value in re.findall(rf'^{name}{{.*?engine="(\d+)".*?}} ([\d.e+]+)$', metrics, re.MULTILINE):
        found[int(engine)] += int(float(value))
    return found


@pytest.fixture(scope="module")
def trace(routing, alone, prompts):
    """What was served, with what its tokens are."""
    spoken = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, alone.tokens, strict=True)]
    return replace(routing, token_ids=np.concatenate(spoken).astype(np.int32))


@pytest.fixture(scope="module")
def front(model, trace, nursery, tmp_path_factory):
    """Addresses of the front-end and of the server behind it."""
    folder = tmp_path_factory.mktemp("front")
    trace.save(folder / "trace.safetensors")
    plan(trace, Topology.parse("2x1"), slots_per_device=40, request_placement=True, effort=0.2).save(folder / "plan.json")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = f"http://127.0.0.1:{port}"
    options = ["--model", model, "--served-model-name", "olmoe", "--model-impl", "transformers", "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", 256, "--max-num-seqs", 8, "--host", "127.0.0.1", "--port", port, "--kv-cache-memory-bytes", 2**26]
    options += ["--data-parallel-size", 2, "--enable-expert-parallel", "--enable-eplb"]
    options += ["--eplb-config", json.dumps(EPLB | {"num_redundant_experts": 16})]
    names = {"GRACE_MOE_PLAN": str(folder / "plan.json"), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ours = ["--placement", folder / "plan.json", "--trace", folder / "trace.safetensors", "--engine", "vllm", "--json"]
    own = folder / "front.log"
    with nursery.running("serving.server", environment=names, words=list(map(str, options))) as (pid, log):
        until(lambda: get(f"{server}/health"), pid, log)
        with front_end(*ours, "--upstream", server, "--port", 0, log=own) as proxy:
            until(lambda: own.read_text().endswith("}\n"), proxy, own)
            yield json.loads(own.read_text())["listening"], server


@pytest.mark.shows("vllm", "requests", "served")
def test_each_request_is_served_by_the_rank_that_it_was_sent_to(front, prompts, alone):
    ours, server = front
    for prompt, tokens in zip(prompts, alone.tokens, strict=True):
        fields = {"model": "olmoe", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        answer = post(f"{ours}/v1/completions", fields | {"return_token_ids": True})
        assert answer["choices"][0]["token_ids"] == tokens
    status = json.loads(get(f"{ours}/grace/status"))
    assert all(status["requests"])
    assert sum(status["requests"]) == len(prompts)
    assert status["prompt_unknown"] == 0
    metrics = get(f"{server}/metrics")
    assert of_engines(metrics, "vllm:prompt_tokens_total") == status["prompt_tokens"]
    assert of_engines(metrics, "vllm:request_success_total") == status["requests"]
