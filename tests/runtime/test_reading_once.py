"""A node reads each weight from its disk once, however many of its ranks want it: they map the same file."""

import os
import re
from pathlib import Path

import pytest

from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.launch import run_local
from tests.runtime.conftest import make_model, placement_of, requests_of


def bytes_from_disk() -> int:
    """Of this process, and of its children that have ended."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


def forget(file: Path) -> None:
    """Take the file out of the system's cache."""
    with open(file, "rb") as opened:
        os.fsync(opened)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.ranks
def test_four_ranks_of_a_node_read_a_model_once(tmp_path):
    folder = make_model(tmp_path / "model", hidden_size=256, intermediate_size=256, vocab_size=8192)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    forget(weights)
    before = bytes_from_disk()
    weights.read_bytes()
    if bytes_from_disk() - before < size:
        pytest.skip("this file system does not tell what it reads")
    everywhere = placement_of("1x4", lambda e: (0, 1, 2, 3))  # each rank holds all experts: most to be read twice
    everywhere.save(tmp_path / "plan.json")
    job = Job(
        model=str(folder),
        requests=requests_of([5, 3, 4, 6]),
        options=GenerationOptions(new_tokens=2, batch_size=1),
        runs=(RunSpec(name="once", placement=str(tmp_path / "plan.json"), dispatch="flat"),),
        warm_up=False,
    )
    forget(weights)
    before = bytes_from_disk()
    run_local(job, 4)
    read = bytes_from_disk() - before
    assert size / 2 < read < size * 1.5, (read, size)  # twice would be each rank for itself; something else is read besides
