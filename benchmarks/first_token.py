"""How long `grace-moe run --local 2x2` takes to its first token, against an older commit, and where the time goes.

Both run the same command on the embedded model, in turn; the older one from a copy of its sources. CPU time counts the whole family of
processes, and is what matters where ranks share cores.

    python benchmarks/first_token.py --against 3403dc8
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from grace_moe import Topology, plan
from grace_moe.embedded import embedded_model
from grace_moe.trace import synthetic_trace

ROOT = Path(__file__).parent.parent
STEPS = {
    "torch": "import torch",
    "Transformers": "import transformers, transformers.modeling_utils",
    "the runtime, with torch's FSDP": "import grace_moe.runtime.job.local_rank",
    "the model's class": "import transformers; transformers.OlmoeForCausalLM",
    "Transformers' table of checkpoints": "from transformers.conversion_mapping import get_checkpoint_conversion_mapping as g; g('olmoe')",
}
"""What a rank imports, in the order in which it does."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one command, in seconds."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = synthetic_trace(tokens=200, layers=4, experts=64, top_k=8)
        plan(trace, Topology.parse("2x2"), method="linear").save(folder / "plan.json")
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", arguments.against, "src"], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        sources = {"before": folder / "src", "now": ROOT / "src"}
        times: dict[str, list[Times]] = {way: [] for way in sources}
        for number in range(arguments.rounds + 1):
            for way, source in sources.items():
                taken = first_token(source, folder)
                if number:  # the first fills caches
                    times[way].append(taken)
    show(arguments.against, times, import_seconds())


def first_token(source: Path, folder: Path) -> Times:
    """One new token of one prompt: the command's whole time, as it ends when it has it."""
    words = ["run", str(embedded_model()), "--placement", str(folder / "plan.json"), "--local", "2x2", "--prompt", "The experts"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "grace_moe", *words, "--new-tokens", "1"],
        env=dict(os.environ, PYTHONPATH=str(source)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(wall=wall, cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def import_seconds() -> dict[str, float]:
    """CPU seconds of each step, one after the other in one process."""
    code = "import time\n" + "\n".join(f"a = time.process_time()\n{step}\nprint(time.process_time() - a)" for step in STEPS.values())
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(zip(STEPS, map(float, printed.split()), strict=True))


def show(commit: str, times: dict[str, list[Times]], imports: dict[str, float]) -> None:
    rounds = len(times["now"])
    print(f"# First token on 2x2 local ranks, {date.today()}\n")
    print(f"`python benchmarks/first_token.py --against {commit}`: the embedded model, {platform.machine()}, {os.cpu_count()} cores;")
    print(f"median of {rounds} rounds (least to most), in turn in one run. CPU: of all processes together.\n")
    print("| | wall, s | CPU, s |\n|---|---|---|")
    for way, taken in times.items():
        print(f"| {way} | {_spread([t.wall for t in taken])} | {_spread([t.cpu for t in taken])} |")
    for what in ("wall", "cpu"):
        ratios = [getattr(now, what) / getattr(then, what) for now, then in zip(times["now"], times["before"], strict=True)]
        print(f"\n{what.upper() if what == 'cpu' else 'Wall'}, now / before, round by round: {_spread(ratios)}.")
    print("\nWhat a rank imports, in CPU seconds; before, each rank did, and now one process for all:\n")
    print("| step | s |\n|---|---|")
    for step, seconds in imports.items():
        print(f"| {step} | {seconds:.2f} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
