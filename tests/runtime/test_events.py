"""What ranks tell their launcher: whole lines, whoever writes; and how a parent starts ranks that it may not fork."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from grace_moe.errors import ModelError, RankError
from grace_moe.runtime.job.events import EventReader, Said, tell, tell_tokens
from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.local_ranks import environment_of_ranks
from grace_moe.runtime.job.ranks import Membership, first_to_say
from grace_moe.runtime.job.results import load_results
from grace_moe.runtime.job.worker import send_job

from .conftest import contiguous, placement_of, requests_of

said = st.builds(Said, st.integers(0, 2**31), st.integers(0, 2**31), st.booleans())


@given(st.lists(said, max_size=200))
def test_tokens_come_as_they_were_told_in_lines_that_a_pipe_takes_whole(tokens):
    out, into = os.pipe()
    tell(into, run="flat")
    tell_tokens(into, tokens)
    os.close(into)
    reader, events = EventReader(out), []
    with open(out, "rb", closefd=True, buffering=0):
        while not reader.ended:
            events += reader.read(1)
    assert events[0] == {"run": "flat"}
    assert [Said(*one) for event in events[1:] for one in event["tokens"]] == tokens


def test_no_line_is_longer_than_a_pipe_takes_whole():
    out, into = os.pipe()
    tell_tokens(into, [Said(2**31, 2**31, False)] * 16)
    assert len(os.read(out, 4096)) <= 512
    os.close(out)
    os.close(into)


def test_an_error_of_several_ranks_is_said_once():
    store = HashStore()
    ranks = [Membership(rank=rank, world_size=3, store=store) for rank in range(3)]
    assert [first_to_say(rank, ModelError("no weights")) for rank in ranks] == [True, False, False]
    assert first_to_say(ranks[2], ModelError("no tokenizer"))
    assert not first_to_say(ranks[1], RankError("rank 1: lost rank 0"))  # which said why


def test_of_ranks_that_lost_another_one_speaks():
    store = HashStore()
    ranks = [Membership(rank=rank, world_size=3, store=store) for rank in range(3)]
    assert [first_to_say(rank, RankError(f"rank {rank.rank}: lost rank 2")) for rank in ranks[:2]] == [True, False]


THREADED = """
import sys, threading, time
from pathlib import Path
from grace_moe.runtime.job.rank_parent import main
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
main(Path(sys.argv[1]), 2)
"""


@pytest.mark.ranks(2)
@pytest.mark.usefixtures("warm")
def test_a_parent_with_threads_starts_its_ranks_anew(tiny_model, tmp_path):
    placement_of("1x2", contiguous(2)).save(tmp_path / "plan.json")
    run = RunSpec(name="run", placement=str(tmp_path / "plan.json"), dispatch="flat")
    job = Job(model=str(tiny_model), requests=requests_of([4, 4]), options=GenerationOptions(new_tokens=2, stop_at_eos=False), runs=(run,))
    command = [sys.executable, "-c", THREADED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment_of_ranks(2)) as parent:
        send_job(job.to_json(), parent)
        told = parent.stdout.read().decode()
    assert '{"ended":[0,0]}' in told
    assert '{"ended":[1,0]}' in told
    assert [len(completion.tokens) for completion in load_results(tmp_path)[0].completions] == [2, 2]
