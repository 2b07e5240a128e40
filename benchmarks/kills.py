"""Kills ranks and launchers at random moments, and counts what stays: processes, folders, messages that name a wrong rank.

    python benchmarks/kills.py --kills 50 --seed 0

Every round starts `grace-moe run` on the embedded model, with a temporary directory of its own, and sends one signal: to a rank or to the
launcher of local ranks, or to a rank of torchrun. The moment is drawn from the first rank's first instruction on (for launchers, from
their own), over the time in which ranks import, load, warm up and generate.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

from grace_moe.embedded import embedded_model
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology

RANKS = 3
VICTIMS = ("rank", "launcher", "launcher", "rank", "torchrun")
"""What a signal goes to: a rank or the launcher of local ranks, or a rank of torchrun."""
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
"""To launchers; ranks are killed."""
ALLOWED_SECONDS = 10.0
"""After which nothing may be left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", default=",".join(VICTIMS), help="Of the rounds, in turn.")
    parser.add_argument("--within", type=float, default=15.0, help="Seconds over which the moments are drawn.")
    arguments = parser.parse_args()
    victims = arguments.victims.split(",")
    draw, counts = random.Random(arguments.seed), Counter[str]()
    for number in range(arguments.kills):
        victim = victims[number % len(victims)]
        with tempfile.TemporaryDirectory(prefix="kills-") as name:
            found = one_kill(victim, draw, arguments.within, Path(name))
        counts.update(found)
        print(f"{number + 1:3} {victim:<16} {', '.join(sorted(found)) or 'as it should be'}", flush=True)
    print(f"\n# {arguments.kills} kills, {date.today()}, seed {arguments.seed}, {os.cpu_count()} cores, {RANKS} ranks\n")
    for what in ("orphan", "folder left", "folder left after the next start", "wrong rank named", "another exit code", "named"):
        print(f"- {what}: {counts[what]}")


def one_kill(victim: str, draw: random.Random, within: float, folder: Path) -> set[str]:
    """What was wrong after one kill, and `named` where a message named the killed rank."""
    (folder / "tmp").mkdir()
    process = start(victim, folder)
    found: set[str] = set()
    if victim == "launcher":
        time.sleep(draw.uniform(0, within))
        sent = draw.choice(SIGNALS)
        process.send_signal(sent)
        process.wait(60)
    else:
        rank = draw.randrange(RANKS)
        pid = pid_of_rank(process, rank)
        time.sleep(draw.uniform(0, within))
        os.kill(pid, signal.SIGKILL)
        code = process.wait(120)
        found |= judge(victim, rank, code, (folder / "said").read_text(errors="replace"))
    deadline = time.monotonic() + ALLOWED_SECONDS
    while time.monotonic() < deadline and (running(folder) or left(folder)):
        time.sleep(0.1)
    if running(folder):
        found.add("orphan")
        for pid in running(folder):
            os.kill(pid, signal.SIGKILL)
    if left(folder):
        found.add("folder left")
        code = "from grace_moe.runtime.job.folder import remove_abandoned as remove; import time; time.sleep(6); remove()"
        subprocess.run([sys.executable, "-c", code], env=environment(folder), check=True)
        if left(folder):
            found.add("folder left after the next start")
    return found


def start(victim: str, folder: Path) -> subprocess.Popen[bytes]:
    """A job that generates for longer than any moment that is drawn."""
    rows = tuple((e * RANKS // 64,) for e in range(64))
    layers = tuple(LayerPlacement(layer_id=i, devices_of_expert=rows, replica_weights=even_weights(rows)) for i in range(4))
    Placement(topology=Topology.parse(f"1x{RANKS}"), num_experts=64, layers=layers).save(folder / "plan.json")
    words = ["-m", "grace_moe", "run", str(embedded_model()), "--placement", str(folder / "plan.json"), "--prompt", "The experts"]
    words += ["--new-tokens", "1500", "--ignore-eos"]
    if victim == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), *words]
    else:
        command = [sys.executable, *words, "--local", f"1x{RANKS}"]
    with open(folder / "said", "wb") as said:
        return subprocess.Popen(command, env=environment(folder), stdout=said, stderr=subprocess.STDOUT, start_new_session=True)


def environment(folder: Path) -> dict[str, str]:
    return dict(os.environ, TMPDIR=str(folder / "tmp"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")


def pid_of_rank(process: subprocess.Popen[bytes], rank: int) -> int:
    """Of the process that is this rank, once it runs."""
    while process.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0") if parent == process.pid else []
            except OSError:
                continue
            if f"RANK={rank}".encode() in variables:
                return int(folder.name)
        time.sleep(0.01)
    raise SystemExit("the launcher ended before its ranks began")


def judge(victim: str, rank: int, code: int, said: str) -> set[str]:
    """Whether messages name the killed rank, and no other."""
    pattern = r"error: rank (\d+) of \d+ stopped" if victim == "rank" else r"lost rank ([\d, ]+)"
    named = {int(n) for match in re.findall(pattern, said) for n in match.split(",")}
    found = {"named"} if named == {rank} else set()
    if named - {rank} or "never joined" in said:
        found.add("wrong rank named")
    if victim == "rank" and (code != 7 or not named):
        found.add("another exit code")
    return found


def running(folder: Path) -> list[int]:
    """Processes of this round: its temporary directory is in their environment."""
    mark, found = f"TMPDIR={folder / 'tmp'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def left(folder: Path) -> list[Path]:
    return [path for path in (folder / "tmp").iterdir() if path.name.startswith("grace-moe")]


if __name__ == "__main__":
    main()
