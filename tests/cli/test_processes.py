"""The command line as its own process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grace_moe.trace import RoutingTrace, synthetic_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "t.safetensors"
    synthetic_trace(tokens=200, layers=2, experts=16, top_k=4).save(path)
    return path


def grace(*arguments, cwd, **environment):
    command = [sys.executable, "-W", "error::SyntaxWarning", "-m", "grace_moe", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)


def test_processes_agree_to_the_byte_whatever_their_hash_seed_and_threads(trace, tmp_path):
    for seed in ("1", "2"):
        result = grace(
            "plan", trace, "--topology", "2x2", "-o", f"plan{seed}.json", "--json", cwd=tmp_path, PYTHONHASHSEED=seed, OMP_NUM_THREADS=seed
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert json.loads(result.stdout)["placement"] == f"plan{seed}.json"
    assert (tmp_path / "plan1.json").read_bytes() == (tmp_path / "plan2.json").read_bytes()


def test_an_error_is_one_line_and_its_code(trace, tmp_path):
    (tmp_path / "t.safetensors").write_bytes(trace.read_bytes()[:500])
    result = grace("plan", "t.safetensors", "--topology", "2x2", "-o", "plan.json", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: t.safetensors: file: not a whole safetensors file")
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_reader_that_leaves_early_sees_no_traceback(trace, tmp_path):
    command = [sys.executable, "-m", "grace_moe", "inspect", str(trace)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) != 0
    assert err == ""


def test_a_plan_can_go_to_standard_output(trace, tmp_path):
    result = grace("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "/dev/stdout", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert '"format": "grace-moe.placement"' in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["inspect", "2x4"], ["inspect", "2x4", "--json"], ["compare", "t", "--topology", "2x2", "--methods", "linear"]]
)
def test_a_full_disk_behind_standard_output_is_one_line(trace, tmp_path, arguments):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    (tmp_path / "t").write_bytes(trace.read_bytes())
    command = [sys.executable, "-m", "grace_moe", *arguments]
    with full.open("w") as stdout:
        result = subprocess.run(command, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (1, "error: output: No space left on device; check the disk\n")


def test_a_terminal_that_knows_only_ascii(tmp_path):
    ids = np.zeros((1, 1, 1), np.int16)
    RoutingTrace(topk_ids=ids, num_experts=1, layer_ids=(0,), model="modèle").save(tmp_path / "t.safetensors")
    result = grace("inspect", "t.safetensors", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "mod\\xe8le" in result.stdout


def test_an_interrupt_ends_with_130_and_no_traceback(tmp_path):
    """The command waits where it would read its trace, and says when it does."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
from grace_moe.cli import main, options
options.read_recording = lambda _: (print("waiting", flush=True), time.sleep(60))
main(["plan", "t.safetensors", "--topology", "2x2", "-o", "plan.json"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")
    assert list(tmp_path.iterdir()) == []
