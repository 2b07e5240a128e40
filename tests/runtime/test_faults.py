"""A rank that dies, refuses or never joins: the others stop within a minute, and the error says which."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import grace_moe.embedded
from grace_moe.cli import main
from grace_moe.errors import MismatchError, ModelError, RankError
from grace_moe.runtime.job.events import Listener
from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.launch import run_local
from grace_moe.runtime.job.local_ranks import environment_of_ranks
from grace_moe.runtime.job.rank_parent import rank_variables
from tests.warm_python import Popen

from .conftest import contiguous, make_model, placement_of, requests_of

pytestmark = pytest.mark.ranks(3)


def make_job(model, tmp_path, shape="1x2", devices=2, **options):
    path = tmp_path / "plan.json"
    placement_of(shape, contiguous(devices)).save(path)
    options = GenerationOptions(**{"new_tokens": 4, "batch_size": 2, "stop_at_eos": False, **options})
    run = RunSpec(name="run", placement=str(path), dispatch="hierarchical")
    return Job(model=str(model), requests=requests_of([4, 4]), options=options, runs=(run,))


def children(parent: int, module: str) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=False).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"grace_moe.runtime.job.{module}" in line]


def parents_of_ranks(launcher: int) -> list[int]:
    return children(launcher, "rank_parent")


def workers(launcher: int) -> list[int]:
    """Rank processes that a process started, in rank order: forked, so they bear their parent's command, or started anew for a GPU."""
    return [rank for parent in parents_of_ranks(launcher) for rank in children(parent, "rank_parent") + children(parent, "worker")]


def runs(pid: int) -> bool:
    """Whether the process exists and is not a zombie that init has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_rank_is_named_and_nothing_is_left(tiny_model, tmp_path):
    job = make_job(tiny_model, tmp_path, new_tokens=100_000)
    started = threading.Event()
    killed_at = []

    def kill_rank_1():
        assert started.wait(150)
        time.sleep(3)  # into the forward passes
        os.kill(workers(os.getpid())[1], signal.SIGKILL)
        killed_at.append(time.monotonic())

    thread = threading.Thread(target=kill_rank_1)
    thread.start()
    with pytest.raises(RankError, match=r"rank 1 of 2 stopped: killed by SIGKILL.*the other ranks were stopped"):
        run_local(job, 2, listener=Listener(on_run=lambda _: started.set()))
    thread.join()
    assert time.monotonic() - killed_at[0] < 60
    assert parents_of_ranks(os.getpid()) == []


@pytest.mark.usefixtures("warm")
def test_topology_that_does_not_match_the_ranks(tiny_model, tmp_path):
    with pytest.raises(MismatchError, match="2 devices for 3 ranks; start 2 ranks"):
        run_local(make_job(tiny_model, tmp_path), 3)


@pytest.mark.usefixtures("warm")
def test_placement_of_another_model(tmp_path):
    other = make_model(tmp_path / "other", num_experts=8)
    with pytest.raises(MismatchError, match=r"num_experts: 16 placed, .* has 8; plan on a trace of this model"):
        run_local(make_job(other, tmp_path), 2)


@pytest.mark.usefixtures("warm")
def test_a_model_without_experts(tmp_path):
    import transformers

    folder = tmp_path / "dense"
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'llama' has no experts that can be placed; give a Mixture-of-Experts model"):
        run_local(make_job(folder, tmp_path), 2)


JOIN = """
import sys
from datetime import timedelta
from grace_moe.errors import RankError
from grace_moe.runtime.job.ranks import joined, leave
try:
    with joined(rendezvous_file=sys.argv[1], timeout=timedelta(seconds=2)):
        pass
except RankError as error:
    print(error)
    leave(error.exit_code)
"""

LOSE = """
import os, re, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from grace_moe.errors import RankError
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.job.ranks import joined, leave
try:
    with joined(rendezvous_file=sys.argv[1], timeout=timedelta(seconds=20)) as member:
        dist.all_reduce(torch.ones(1, device=rank_device()))
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        own = {match[1] for match in map(re.compile("socket:.(\\d+).").fullmatch, links) if match}
        rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        print("listens on", *{row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in own}, flush=True)
        if member.rank == 1:
            member.store.set("gone", "1")
            os._exit(9)
        if member.rank == 2:  # far from any collective, and ended as torchrun ends the ranks that are left
            while not member.store.check(["gone"]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        dist.all_reduce(torch.ones(1, device=rank_device()))
except RankError as error:
    print(error)
    leave(error.exit_code)
"""


def start_rank(code, rank, world_size, path):
    return Popen(
        [sys.executable, "-c", code, str(path)],
        env=environment_of_ranks(world_size) | rank_variables(rank, world_size),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RUN = """
import sys
from datetime import timedelta
from pathlib import Path
from grace_moe.errors import GraceError
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.ranks import joined, leave
try:
    with joined(rendezvous_file=sys.argv[1], timeout=timedelta(seconds=60)) as member:
        run_on_rank(Job.from_json(Path(sys.argv[1]).with_name(f"job{member.rank}.json").read_bytes()), member)
except GraceError as error:
    print(error)
    leave(error.exit_code)
leave(0)
"""


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ("placement", "--placement: rank 0 has SHA-256"),
        ("dispatch", "--dispatch: rank 0 has flat, but rank 1: hierarchical; give all ranks the same"),
        ("dtype", "--dtype: rank 0 has float32, but rank 1: bfloat16"),
    ],
)
def test_ranks_that_were_told_different_things_all_say_so(tiny_model, tmp_path, differs, says):
    for rank in range(2):
        other = rank == 1
        placement_of("2x1", (lambda e: (e % 2,)) if other and differs == "placement" else contiguous(2)).save(tmp_path / f"{rank}.json")
        dispatch = "hierarchical" if other and differs == "dispatch" else "flat"
        run = RunSpec(name="run", placement=str(tmp_path / f"{rank}.json"), dispatch=dispatch)
        options = GenerationOptions(new_tokens=1, batch_size=2)
        dtype = "bfloat16" if other and differs == "dtype" else "float32"
        job = Job(model=str(tiny_model), requests=requests_of([4, 4]), options=options, runs=(run,), dtype=dtype)
        (tmp_path / f"job{rank}.json").write_bytes(job.to_json())
    ranks = [start_rank(RUN, rank, 2, tmp_path / "store") for rank in range(2)]
    for process in ranks:
        out, error = process.communicate(timeout=100)
        assert process.returncode == MismatchError.exit_code, error[-2000:]
        assert says in out


def test_a_rank_that_never_joins_is_named(tmp_path):
    out, _ = (process := start_rank(JOIN, 0, 2, tmp_path / "store")).communicate(timeout=60)
    assert process.returncode == RankError.exit_code
    assert "rank 0: rank 1 never joined within 2 s" in out


@pytest.fixture(scope="module")
def after_a_loss(device, tmp_path_factory):
    """Exit codes and outputs of three ranks of which rank 1 dies and rank 2 is told to end; nobody launched them."""
    store = tmp_path_factory.mktemp("lost") / "store"
    processes = [start_rank(LOSE, rank, 3, store) for rank in range(3)]
    outputs = [p.communicate(timeout=100)[0] for p in processes]
    return [p.returncode for p in processes], outputs


def test_survivors_name_the_lost_rank_and_no_other(after_a_loss):
    codes, outputs = after_a_loss
    assert codes == [RankError.exit_code, 9, 128 + signal.SIGTERM], outputs
    assert "rank 0: lost rank 1 (" in outputs[0]


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc")
def test_local_ranks_listen_on_loopback_alone(after_a_loss):
    for output in after_a_loss[1]:
        assert output.splitlines()[0] == "listens on 0100007F"


@pytest.mark.parametrize(("moment", "sent"), [("started", signal.SIGTERM), ("running", signal.SIGKILL)])
def test_ranks_leave_with_their_launcher_and_take_the_folder_along(tiny_model, tmp_path, moment, sent):
    """It can stop nobody: the ranks find out, before they import torch as well as in the middle of the work."""
    (tmp_path / "job.json").write_bytes(make_job(tiny_model, tmp_path, new_tokens=100_000).to_json())
    (tmp_path / "tmp").mkdir()
    code = (
        "import sys; from pathlib import Path; from grace_moe.runtime.job.events import Listener\n"
        "from grace_moe.runtime.job.job import Job; from grace_moe.runtime.job.launch import run_local\n"
        "listener = Listener(on_run=lambda _: print('running', flush=True))\n"
        "run_local(Job.from_json(Path(sys.argv[1]).read_bytes()), 2, listener=listener)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "job.json")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")})
    if moment == "running":
        assert parent.stdout.readline() == "running\n"
    while not (ranks := parents_of_ranks(parent.pid)):
        assert parent.poll() is None
        time.sleep(0.01)
    if moment == "running":
        ranks += workers(parent.pid)
        assert len(ranks) == 3
    parent.send_signal(sent)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 100  # a parent notices between two imports
    while time.monotonic() < deadline and any(map(runs, ranks)):
        time.sleep(0.1)
    assert not any(map(runs, ranks))
    assert list((tmp_path / "tmp").glob("grace-moe*")) == []


@pytest.mark.usefixtures("warm")
def test_vanilla_needs_experts_that_divide(tiny_model, tmp_path):
    path = tmp_path / "three.json"
    placement_of("3x1", contiguous(3)).save(path)
    run = RunSpec(name="run", placement=str(path), dispatch="vanilla")
    job = replace(make_job(tiny_model, tmp_path), runs=(run,))
    with pytest.raises(MismatchError, match="vanilla needs 16 experts to divide over 3 ranks; use flat or hierarchical"):
        run_local(job, 3)


def test_unknown_dispatch():
    from grace_moe.errors import UsageError

    with pytest.raises(UsageError, match="'fast' is unknown; use one of vanilla, flat, hierarchical"):
        RunSpec(name="x", placement="x.json", dispatch="fast")
    assert replace(RunSpec(name="x", placement="x.json", dispatch="flat"), name="y").dispatch == "flat"


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("form", [["--json"], []])
def test_a_full_disk_costs_the_profile_and_not_what_was_generated(tmp_path, form):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    placement_of("1x1", lambda e: (0,), layers=4, experts=64).save(tmp_path / "plan.json")
    embedded = Path(grace_moe.embedded.__file__).parent
    words = ["run", embedded, "--placement", tmp_path / "plan.json", "--local", "1x1", "--text", embedded / "prose.txt"]
    sizes = ["--requests", 2, "--prompt-tokens", 4, "--new-tokens", 2, "--profile", "/dev/full", *form]
    command = [sys.executable, "-m", "grace_moe", *map(str, [*words, *sizes])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 1, result.stderr
    assert "No space left on device" in result.stderr
    assert ("completions" if form else "hierarchical: ") in result.stdout


@pytest.mark.usefixtures("warm")
def test_a_plan_without_one_of_the_models_layers_ends_with_the_code_of_a_mismatch(tmp_path, capsys):
    """The rank refuses, and the launcher ends with the rank's own code."""
    placement_of("1x1", lambda e: (0,), layers=3, experts=64).save(tmp_path / "plan.json")
    words = ["run", grace_moe.embedded.embedded_model(), "--placement", tmp_path / "plan.json", "--local", "1x1", "--prompt", "The"]
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert exit_.value.code == MismatchError.exit_code
    assert "layers: layer 3 of" in capsys.readouterr().err.splitlines()[-1]
