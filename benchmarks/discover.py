"""`grace-moe discover` on random clusters of network namespaces: are groups right, and bandwidths; and on large made matrices.

    python benchmarks/discover.py --clusters 50

Prints a page in Markdown. Every rank is in a namespace of its own and is told nothing of the others' nodes; links carry bursts of others'
traffic (jitter), and one is bad (benchmarks/namespace_clusters.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

from grace_moe import Topology
from grace_moe.discover.tiers import find_tiers
from made_clusters import Cluster, label_of, made, random_cluster
from namespace_clusters import built, run_ranks
from slow_link import clean_up_when_ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first cluster")
    parser.add_argument("--quiet", action="store_true", help="without jitter")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one a line, and no page")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="files of such rows: print their page, run nothing")
    arguments = parser.parse_args()
    clean_up_when_ended()
    rows = [json.loads(line) for path in arguments.rows for line in path.read_text().splitlines()]
    if rows:
        show(rows)
        return
    for seed in range(arguments.first, arguments.first + arguments.clusters):
        rows.append(tried(random_cluster(seed), seed, jitter=not arguments.quiet))
        print(json.dumps(rows[-1]), file=sys.stdout if arguments.json else sys.stderr, flush=True)
    if not arguments.json:
        show(rows)


def tried(cluster: Cluster, seed: int, *, jitter: bool) -> dict:
    """Discover one cluster."""
    import grace_moe.runtime.job.probe  # noqa: F401 (ranks are forked from here, and import nothing more)

    with tempfile.TemporaryDirectory() as name, built(cluster) as names:
        folder = Path(name)
        codes = run_ranks(names, folder, jitter=1000 * seed if jitter else None)
        if any(codes):
            return {"seed": seed, "cluster": in_words(cluster), "right": False, "error": f"ranks ended with {codes}"}
        topology = Topology.parse(str(folder / "found.json"))
        seconds = float((folder / "seconds").read_text())
    assert topology.discovered is not None
    found = {tuple(map(tuple, tier["groups"])): tier["bandwidth_bytes_per_s"] for tier in topology.discovered["tiers"]}
    rates = dict(zip(cluster.partitions, cluster.rates, strict=True))
    errors = [abs(found[groups] / rates[groups] - 1) for groups in cluster.tiers if groups in found]
    told = [line for line in topology.discovered["contradictions"] if line.startswith("the link")]
    named = cluster.bad is not None and any(_names(line, cluster.bad) for line in told)
    return {
        "seed": seed,
        "cluster": in_words(cluster),
        "right": set(found) == set(cluster.tiers),
        "unsure": any("not enough evidence" in line for line in topology.discovered["contradictions"]),
        "errors": errors,
        "bad": None if cluster.bad is None else named,
        "others": sum(not _names(line, cluster.bad) for line in told),
        "seconds": seconds,
        "load": os.getloadavg()[0],
    }


def _names(line: str, bad: tuple[int, int, float] | None) -> bool:
    return bad is not None and any(f"from rank {i} to rank {j} " in line for i, j in (bad[:2], bad[1::-1]))


def in_words(cluster: Cluster) -> str:
    """Its groups and rates, narrow to wide."""
    parts = [
        f"{'+'.join(str(len(group)) for group in groups)} at {rate / 1e6:.0f} MB/s"
        for groups, rate in zip(cluster.partitions, cluster.rates, strict=True)
    ]
    return ", ".join(parts)


def large() -> list[tuple[str, float, float]]:
    """Matrices of 1,024 ranks with 20% noise: shape, the least adjusted Rand index of all tiers, seconds of processor time."""
    rows = []
    for shape in ((128, 8), (4, 32, 8), (8, 8, 16), (2, 512)):
        matrix, labels = made(shape, np.random.default_rng(0))
        began = time.process_time()
        tiers = find_tiers(matrix)
        seconds = time.process_time() - began
        same = len(tiers) == len(shape)
        scores = [adjusted_rand_score(label, label_of(tier.groups, len(matrix))) for label, tier in zip(labels, tiers, strict=False)]
        rows.append(("x".join(map(str, shape)), min(scores) if same else 0.0, seconds))
    return rows


def show(rows: list[dict]) -> None:
    done = [row for row in rows if "error" not in row]
    errors = [error for row in done for error in row["errors"]]
    seconds = [row["seconds"] for row in done]
    bad = [row["bad"] for row in done if row["bad"] is not None]
    print(f"# Discovery on random namespace clusters, {date.today()}\n")
    print(
        f"`python benchmarks/discover.py --clusters {len(rows)}`: {platform.machine()}, {os.cpu_count()} cores, gloo, a namespace a rank,"
    )
    print("veth and `tc tbf`; every link carries bursts of others' traffic, and one link of each cluster is bad, where it can be told.")
    loads = [row["load"] for row in done]
    print(f"Load of the machine in the minute before each ended (median, most): {statistics.median(loads):.1f}, {max(loads):.1f};")
    print("the ranks came before all other work (`SCHED_RR`).\n")
    said = sum(not row["right"] and row["unsure"] for row in done)
    print(f"- Groups right in all tiers: {sum(row['right'] for row in rows)} of {len(rows)}; ", end="")
    print(f"of the others, {said} say 'not enough evidence'.")
    print(f"- Bandwidth of a tier off by (median, most): {statistics.median(errors):.1%}, {max(errors):.1%}; ", end="")
    print(f"within 15%: {sum(error <= 0.15 for error in errors)} of {len(errors)}.")
    print(f"- The bad link named: {sum(bad)} of {len(bad)}; links named besides: {sum(row['others'] for row in done)}.")
    print(f"- Seconds to measure (median, most): {statistics.median(seconds):.1f}, {max(seconds):.1f}. Starting ranks is not in them.\n")
    print("| seed | groups and rates, narrow to wide | right | off by | bad link named | s |\n|---|---|---|---|---|---|")
    for row in rows:
        if "error" in row:
            print(f"| {row['seed']} | {row['cluster']} | no: {row['error']} | | | |")
            continue
        off = ", ".join(f"{error:.1%}" for error in row["errors"])
        named = "none there" if row["bad"] is None else "yes" if row["bad"] else "**no**"
        right = "yes" if row["right"] else "not enough evidence" if row["unsure"] else "**no**"
        print(f"| {row['seed']} | {row['cluster']} | {right} | {off} | {named} | {row['seconds']:.1f} |")
    print("\n1,024 ranks, made: nested equal groups, each tier four times as fast as the next, every number off by a normal 20%.\n")
    print("| groups, wide to narrow | least adjusted Rand index | s of processor time |\n|---|---|---|")
    for shape, score, spent in large():
        print(f"| {shape} | {score:.3f} | {spent:.2f} |")


if __name__ == "__main__":
    main()
