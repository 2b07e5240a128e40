"""`grace-moe discover`, as it is called; what it finds is in tests/discover."""

import json

import pytest

from grace_moe.topology import Topology


def test_it_wants_ranks(call, folder, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    code, _, error = call("discover", "-o", "t.json")
    assert (code, error) == (
        2,
        "error: --local: not given, and this is not a rank of torchrun; give --local N, or start it with torchrun\n",
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = call("discover", "-o", "t.json", "--local", "2")
    assert (code, error) == (2, "error: --local: given on a rank of torchrun; leave it out\n")


@pytest.mark.ranks(2)
def test_two_local_ranks_are_measured_and_contradict_what_is_declared(call, warm, tmp_path):
    path = tmp_path / "t.json"
    code, out, error = call("discover", "-o", path, "--local", "2", "--declared", "2x1", "--json")
    assert code == 0, error
    found = json.loads(out)
    assert found["contradictions"] == ["1 devices a node declared (2x1: 2 groups of 1), 2 measured (1 group of 2)"]
    assert Topology.parse(str(path)).shape == "1x2"
    assert Topology.parse(str(path)).discovered == found


@pytest.mark.ranks(2)
def test_what_is_damaged_is_said_once(call, warm, tmp_path):
    (tmp_path / "declared").write_text("SwitchName=s0 Nodes=n[0-")
    code, _, error = call("discover", "-o", tmp_path / "t.json", "--local", "2", "--declared", tmp_path / "declared")
    assert code != 0
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path}/declared: line 1: 'n[0-' is not a list of names; see slurm.schedmd.com/topology.conf.html"
    ]
    assert not (tmp_path / "t.json").exists()
