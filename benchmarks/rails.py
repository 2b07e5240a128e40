"""Stage 1 of hierarchical dispatch against one plain all-to-all of the same bytes, over a slow link, ranks in step and out of step.

The rows that OLMoE-sized tokens send to their rail peers, by the runtime's own `send_rows` on the rail's group, and by
`all_to_all_single` on all ranks with the same splits; and with the same bytes spread over all ranks of the other node. In turn, in one run.

    python benchmarks/rails.py --rate 200mbit
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

from slow_link import NODES, RANKS, finish, nodes, start

ROW_BYTES = 2048 * 4 + 8 * 6
"""A hidden state of 2048 float32, eight slots and weights."""
TOKENS = (16, 64, 256, 512)
LATE = (0.0, 0.003)
"""Seconds that each rank begins after the one before it."""
WAYS = ("stage 1", "plain, same splits", "plain, spread over the far node")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="200mbit", help="of the link between nodes, as tc writes it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments.rank, arguments.rounds, arguments.folder)
        return
    with nodes(arguments.rate) as (prefixes, link), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish([start(__file__, rank, prefixes[rank * NODES // RANKS], folder) for rank in range(RANKS)])
        show(json.loads((folder / "times.json").read_text()), link, arguments.rounds)


def measure(rank: int, rounds: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from grace_moe.runtime.dispatch.collectives import TrafficMeter, rail_channel
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.topology import Topology

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    topology = Topology.parse(f"{NODES}x{RANKS // NODES}")
    groups = make_groups(topology, timedelta(seconds=300))
    meter = TrafficMeter(topology=topology, rank=rank)
    rail = rail_channel(groups, meter)
    peer = int(topology.rail_peers[rank, 1 - groups.node_index])
    far = topology.node_of_device != groups.node_index
    results = []
    for tokens in TOKENS:
        rows = torch.zeros((tokens, ROW_BYTES), dtype=torch.uint8)
        on_rail = [tokens if r == peer else 0 for r in groups.rail_ranks]
        straight = [tokens if r == peer else 0 for r in range(RANKS)]
        spread = [tokens * NODES // RANKS if far[r] else 0 for r in range(RANKS)]

        def plain(splits: list[int], rows: torch.Tensor = rows) -> None:
            dist.all_to_all_single(torch.empty_like(rows), rows, splits, splits)

        ways = {
            WAYS[0]: lambda rows=rows, splits=on_rail: rail.exchange_rows(rows, splits, splits),
            WAYS[1]: lambda splits=straight: plain(splits),
            WAYS[2]: lambda splits=spread: plain(splits),
        }
        for late in LATE:
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            for round_number in range(rounds + 1):
                for name in WAYS:
                    dist.barrier()
                    time.sleep(late * rank)
                    began = time.perf_counter()
                    ways[name]()
                    dist.barrier()
                    if round_number:  # the first warms up
                        seconds[name].append(time.perf_counter() - began)
            results.append({"tokens": tokens, "late": late, "seconds": seconds})
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # torch's threads may outlive the group and abort an orderly end


def show(results: list[dict], link: str, rounds: int) -> None:
    print(f"# Stage 1 against a plain all-to-all of the same bytes, {date.today()}\n")
    print(f"`python benchmarks/rails.py`: {platform.machine()}, {os.cpu_count()} cores, 2x2 ranks over gloo, {link}; rows of")
    print(f"{ROW_BYTES} bytes, median of {rounds} rounds (least to most), in turn in one run.\n")
    columns = ("rows a rank", "rank r late by", *(f"{name}, ms" for name in WAYS), "stage 1 / plain")
    print("| " + " | ".join(columns) + " |\n|---|---|---|---|---|---|")
    for r in results:
        cells, medians = [], []
        for name in WAYS:
            ms = [s * 1e3 for s in r["seconds"][name]]
            medians.append(statistics.median(ms))
            cells.append(f"{medians[-1]:.1f} ({min(ms):.1f} to {max(ms):.1f})")
        ratios = " and ".join(f"{medians[0] / m:.2f}" for m in medians[1:])
        print(f"| {r['tokens']} | {r['late'] * 1e3:g} ms x r | " + " | ".join(cells) + f" | {ratios} |")


if __name__ == "__main__":
    main()
