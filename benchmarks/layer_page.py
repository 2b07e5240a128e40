"""The page that `layer.py` prints: what each way's layer takes, and the parts beside the paper's figures."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from datetime import date
from typing import Any

PAPER = {
    "Occult, flat": (0.0, 0.0, 0.0, 0.0, 0.0),
    "+ HSC": (-35.19, -35.64, 100.13, -49.88, 0.02),
    "+ hierarchical grouping": (-48.33, -50.67, 47.10, -4.78, 90.03),
    "+ fixed replication, WRR": (-44.52, -41.62, 76.33, -6.18, 51.32),
    "+ dynamic replication, WRR": (-44.91, -41.84, 78.41, -26.86, 31.92),
    "+ TAR: the paper's GRACE": (-50.57, -52.11, 57.22, -25.66, 39.35),
}
"""What the paper reports, in % of Occult: all-to-all time, traffic between and inside nodes, idle time, spread of load."""


def show(arguments: argparse.Namespace, results: list[dict[str, Any]], link: str) -> None:
    """Print the page of a run: each way's layer, and the paper's parts."""
    first = results[0]
    share = 1 - statistics.median(first["experts"]) / statistics.median(first["seconds"])
    shape = f"hidden {arguments.hidden}, float32"
    experts = f"experts of intermediate size {arguments.intermediate} compute on the shared cores"
    if arguments.emulate is not None:
        experts = f"experts take {arguments.emulate:g} us a pair on a device of the rank's own (emulated: the rank sleeps)"
    print(f"# One MoE layer, whole, {date.today()}\n")
    print(f"`python benchmarks/layer.py`: {arguments.trace.stem}, {arguments.layers} layers, {arguments.tokens} tokens a rank, {shape};")
    print(f"2x2 ranks over gloo on {os.cpu_count()} cores ({platform.machine()}); {experts};")
    print(f"{link}: vanilla spends {share:.0%} outside of its experts.")
    print(f"Median of {arguments.rounds} rounds (least to most); all ways take turns in one run.\n")
    columns = (
        "way",
        "layer, ms",
        "least to most",
        "against vanilla",
        "experts, ms",
        "between nodes, MiB",
        "copies a token",
        "busiest",
        "memory",
    )
    print("| " + " | ".join(columns) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = statistics.median(first["seconds"])
    for r in results:
        median = statistics.median(r["seconds"])
        spread = f"{min(r['seconds']) * 1e3:.0f} to {max(r['seconds']) * 1e3:.0f}"
        busiest, sent = f"{statistics.median(r['experts']) * 1e3:.0f}", f"{r['sent'] / 2**20:.2f}"
        replayed = f"{r['copies']:.3f} | {r['load']:.2f}x | {r['slots']:.2f}x"
        print(f"| {r['way']} | {median * 1e3:.0f} | {spread} | {base / median:.2f}x | {busiest} | {sent} | {replayed} |")
    show_parts(results)


def show_parts(results: list[dict[str, Any]]) -> None:
    """The paper's component table: each part's figures against Occult's with flat dispatch, the paper's own beside."""
    of = {r["way"]: r for r in results}
    base = of["Occult, flat"]
    print("\nThe parts against Occult with flat dispatch, in % (the paper's figures in brackets). All-to-all is the layer's time outside")
    print("of its busiest rank's experts; idle time and spread of load are replayed on all requests that were not planned on.\n")
    print("| way | all-to-all time | between nodes | inside nodes | idle time | spread of load |\n|---|---|---|---|---|---|")
    for name in (*PAPER, "joint plan, HSC", "joint plan", "joint plan, requests placed"):
        cells = []
        for number, figure in enumerate((_outside, "sent", "inside", "idle", "spread")):
            ours, occult = (figure(r) if callable(figure) else r[figure] for r in (of[name], base))
            paper = f" ({PAPER[name][number]:+.0f})" if name in PAPER else ""
            cells.append(f"{(ours / occult - 1) * 100 if occult else 0:+.0f}{paper}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def _outside(result: dict[str, Any]) -> float:
    return statistics.median(whole - experts for whole, experts in zip(result["seconds"], result["experts"], strict=True))
