"""The command as its own process, before a small server of ours: what goes in comes out, whoever dies or goes."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.frontend.samples import placement, trace

SECONDS = 60


def started(command, **options):
    return subprocess.Popen([sys.executable, "-m", *map(str, command)], text=True, **options)


def stopped(process):
    process.send_signal(signal.SIGINT)
    with process:  # which waits, and closes pipes
        assert process.wait(SECONDS) in (0, 130, -signal.SIGINT)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def until(question):
    """The first true answer; the test's own timeout ends the wait."""
    while not (answer := question()):
        time.sleep(0.02)
    return answer


def answers(address):
    try:
        return httpx2.get(f"{address}/seen", timeout=SECONDS).status_code == 200
    except httpx2.HTTPError:
        return False


class Upstream:
    """The server of `upstream.py`, which can be stopped and started again at its port."""

    def __init__(self):
        self.port, self.process = free_port(), None
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.process = started(["tests.frontend.upstream", self.port])
        until(lambda: answers(self.address))

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def upstream():
    server = Upstream()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def front(upstream, tmp_path_factory):
    """Address of the front-end: every request goes through it."""
    folder = tmp_path_factory.mktemp("front")
    placement().save(folder / "plan.json")
    trace().save(folder / "trace.safetensors")
    options = ["--placement", folder / "plan.json", "--trace", folder / "trace.safetensors", "--engine", "vllm", "--max-body", 10_000]
    command = ["grace_moe", "front", *options, "--upstream", upstream.address, "--port", 0, "--json"]
    process = started(command, stdout=subprocess.PIPE)
    yield json.loads(process.stdout.readline())["listening"]
    stopped(process)


@pytest.fixture(scope="module")
def client(front):
    with httpx2.Client(base_url=front, timeout=SECONDS) as client:
        yield client


def last_seen(client):
    return client.get("/seen").json()[-1]


def test_each_request_reaches_the_rank_that_its_tokens_point_to(client):
    before = client.get("/grace/status").json()["requests"]
    for tokens, ranks in (([0, 2, 4], ("0", "1")), ([1, 3, 5], ("2", "3"))):
        assert client.post("/v1/completions", json={"prompt": tokens}).json()["rank"] in ranks
    status = client.get("/grace/status").json()
    assert sum(status["requests"]) == sum(before) + 2
    assert status["in_flight"] == [0, 0, 0, 0]


def test_method_target_headers_and_body_are_handed_on(client):
    client.request("PUT", "/a%2Fb//c?x=1&x=%20", content=b"\x00\xff" * 20, headers={"x-mine": "1", "accept-encoding": "br"})
    seen = last_seen(client)
    assert (seen["method"], seen["target"], seen["body"]) == ("PUT", "/a%2Fb//c?x=1&x=%20", "\x00\xff" * 20)
    assert (seen["headers"]["x-mine"], seen["headers"]["accept-encoding"]) == ("1", "br")
    assert "x-data-parallel-rank" not in seen["headers"]


def test_errors_come_back_as_they_are(client):
    answer = client.post("/error", json={})
    assert (answer.status_code, answer.content, answer.headers.get_list("x-own")) == (418, b"short", ["1", "2"])
    assert client.post("/v1/completions", content=b"{").json() == {"rank": None, "size": 1}


def test_a_stream_is_the_engines_byte_for_byte(client):
    with client.stream("POST", "/v1/chat/completions", json={"messages": [], "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert b"".join(answer.iter_raw()) == b"".join(b"data: %d\n\n" % n for n in range(5)) + b"data: [DONE]\n\n"


def test_many_at_once_and_none_is_dropped(client):
    def ask(number):
        return client.post("/v1/completions", json={"prompt": [number % 10] * (number + 1)}).json()["rank"]

    before = client.get("/grace/status").json()
    with ThreadPoolExecutor(16) as pool:
        ranks = list(pool.map(ask, range(200)))
    after = client.get("/grace/status").json()
    assert [after["requests"][rank] - before["requests"][rank] for rank in range(4)] == [ranks.count(str(rank)) for rank in range(4)]
    assert after["in_flight"] == [0, 0, 0, 0]


def test_a_body_over_the_limit_is_refused(client):
    answer = client.post("/v1/completions", content=b"x" * 10_001)
    assert answer.status_code == 413
    assert "larger --max-body" in answer.json()["error"]["message"]


def test_a_client_that_goes_ends_its_request(client, front):
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{front}/wait", timeout=0.5)
    until(lambda: last_seen(client).get("gone"))


def test_an_engine_that_dies_is_told_and_comes_back(client, upstream):
    with pytest.raises(httpx2.RemoteProtocolError), client.stream("POST", "/v1/chat/completions", json={"die": 2}) as answer:
        for _ in answer.iter_raw():
            pass
    assert upstream.process.wait(SECONDS) == 1
    answer = client.post("/v1/completions", json={"prompt": [0]})
    assert answer.status_code == 502
    assert upstream.address in answer.json()["error"]["message"]
    assert client.get("/health").status_code == 502
    status = client.get("/grace/status").json()
    assert status["cut_off"] == 1
    assert status["upstream_away"] == 2
    assert status["in_flight"] == [0, 0, 0, 0]
    upstream.start()
    assert client.post("/v1/completions", json={"prompt": [0]}).status_code == 200
    assert client.get("/health").status_code == 200


def test_a_port_that_is_taken_says_so(upstream, tmp_path):
    placement().save(tmp_path / "plan.json")
    options = ["--placement", tmp_path / "plan.json", "--engine", "vllm", "--upstream", upstream.address, "--port", upstream.port]
    with started(["grace_moe", "front", *options], stderr=subprocess.PIPE) as process:
        assert process.stderr.read().startswith(f"error: --host 127.0.0.1 --port {upstream.port}: Address already in use")
        assert process.wait(SECONDS) == 2
