"""End to end over a slow link: the embedded model generates on 2x2 ranks, by placement and dispatch, prefill and decode apart.

Two nodes of two ranks (see `slow_link`); half of the embedded text's requests to plan on, others to run. What is run is `grace-moe run`'s
own job; the ways take turns, so that a slow moment of the machine strikes all.

    python benchmarks/end_to_end.py --rate 200mbit [--requests 64 --prompt 128 --new 16]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from grace_moe import Topology, plan
from grace_moe.embedded import embedded_model, embedded_texts
from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.recording import record_trace, requests_from_text
from grace_moe.runtime.job.results import RunResult, load_results
from grace_moe.runtime.job.worker import send_job
from grace_moe.runtime.model.description import load_tokenizer
from grace_moe.runtime.model.loading import load_whole_model
from slow_link import NODES, RANKS, finish, nodes

WAYS = (
    ("vanilla", "linear", "vanilla"),
    ("contiguous, flat", "linear", "flat"),
    ("Occult, flat", "occult", "flat"),
    ("EPLB, hierarchical", "eplb", "hierarchical"),
    ("the paper's plan, hierarchical", "grace_paper", "hierarchical"),
    ("joint plan, hierarchical", "grace", "hierarchical"),
    ("joint plan, auto", "grace", "auto"),
)
"""Name, method, dispatch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="200mbit", help="of the link between nodes, as tc writes it")
    parser.add_argument("--requests", type=int, default=64, help="of all ranks together")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=16, help="tokens generated for each request")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(str(embedded_model()))
    requests = requests_from_text(list(embedded_texts().values()), tokenizer, tokens_per_request=arguments.prompt, max_requests=10_000)
    running, planning = requests[: arguments.requests], requests[arguments.requests :]
    if len(planning) < arguments.requests:
        parser.error(f"the embedded text has {len(requests)} requests of {arguments.prompt} tokens; run less than half of them")
    model = load_whole_model(str(embedded_model()))
    short = GenerationOptions(new_tokens=arguments.new, batch_size=48, stop_at_eos=False)
    trace, _ = record_trace(model, planning, short, name="embedded OLMoE", dataset="held-out text")
    options = GenerationOptions(new_tokens=arguments.new, batch_size=-(-len(running) // RANKS), stop_at_eos=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in {method for _, method, _ in WAYS}:
            plan(trace, Topology.parse(f"{NODES}x{RANKS // NODES}"), method).save(folder / f"{method}.json")
        specs = [RunSpec(name=way, placement=str(folder / f"{method}.json"), dispatch=dispatch) for way, method, dispatch in WAYS]
        job = Job(model=str(embedded_model()), requests=tuple(running), options=options, runs=tuple(specs * arguments.rounds))
        results, link = run(job, folder, arguments.rate)
    show(arguments, results, link)


def run(job: Job, folder: Path, rate: str) -> tuple[tuple[RunResult, ...], str]:
    """The job on ranks in namespaces, as `grace-moe run --local` would run it without."""
    with nodes(rate) as (prefixes, link):
        ranks = []
        for rank in range(RANKS):
            environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), OMP_NUM_THREADS="1")
            worker = [*prefixes[rank * NODES // RANKS], sys.executable, "-m", "grace_moe.runtime.job.worker", str(folder)]
            ranks.append(subprocess.Popen(worker, env=environment, stdin=subprocess.PIPE, bufsize=0))
        for process in ranks:
            send_job(job.to_json(), process)
        finish(ranks)
    return load_results(folder), link


def show(arguments: argparse.Namespace, results: tuple[RunResult, ...], link: str) -> None:
    print(f"# End to end, {date.today()}\n")
    print(f"`python benchmarks/end_to_end.py`: the embedded model, {arguments.requests} requests of {arguments.prompt} tokens and")
    print(f"{arguments.new} new ones, on 2x2 ranks over gloo, {os.cpu_count()} cores ({platform.machine()}), {link}; median of")
    print(f"{arguments.rounds} rounds (least to most), all ways in turn in one run.\n")
    print("| way | prefill, s | decode, ms a step | end to end, s | against vanilla | between nodes, KiB a token |")
    print("|---|---|---|---|---|---|")
    base = 0.0
    for way, _, _ in WAYS:
        rounds = [r for r in results if r.name == way]
        prefill = [r.prefill_seconds for r in rounds]
        decode = [r.decode_seconds_per_step * 1e3 for r in rounds]
        whole = [r.prefill_seconds + r.decode_seconds for r in rounds]
        base = base or statistics.median(whole)
        print(
            f"| {way} | {_spread(prefill, 2)} | {_spread(decode, 0)} | {_spread(whole, 2)} "
            f"| {base / statistics.median(whole):.2f}x | {rounds[0].cross_node_bytes_per_token / 1024:.2f} |"
        )
    if any(a.tokens != b.tokens for r in results for a, b in zip(r.completions, results[0].completions, strict=True)):
        sys.exit("the ways differ in what they generated")
    print("\nAll ways generated the same tokens.")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
