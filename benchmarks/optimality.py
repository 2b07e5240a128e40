"""How near the node search comes to what much longer searches find, on a trace's planning half. Writes a results page in Markdown.

    python benchmarks/optimality.py TRACE... [--topologies 2x2,4x4] [--layers 2] [--effort 40] [--seeds 3] [-o page.md]

Two questions, layer by layer. (1) The objective (copies per token, and the prices of imbalance) that a default search reaches, against
the best of `--seeds` searches of `--effort` times the moves on all the tokens. (2) Without replicas: nodes that a token needs, against
Mt-KaHyPar (`pip install mtkahypar`; left out where it is missing), whose blocks may be as uneven in load as ours are, and hold any number
of experts, where ours hold equal numbers.
"""

import argparse
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace, Topology
from grace_moe.choice import joint_choice_table
from grace_moe.choice.cover import visited_nodes
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning import PlanningTask
from grace_moe.planning.constants import POLISH_TOKENS, SEARCH_TOKENS
from grace_moe.planning.grace.canonical_names import expert_order, renamed
from grace_moe.planning.grace.schedule import LONG, SHORT
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import SearchOptions, energy, node_state
from grace_moe.planning.grace.search.nodes import search_nodes
from grace_moe.planning.grace.uncertainty import load_shares

KAHYPAR_SEEDS = 10


class Problem:
    """One layer's node search, as `plan` sets it up."""

    def __init__(self, trace: RoutingTrace, layer: int, topology: Topology, slots: int) -> None:
        ids = trace.topk_ids[:, layer]
        self.experts = trace.num_experts
        self.ids = renamed(ids, expert_order(ids, self.experts))
        devices = np.array([len(node.devices) for node in topology.nodes])
        self.room = NodeLimits(slots=devices * slots, devices=devices, capacity=devices / devices.sum())
        self.share, self.noise = load_shares(self.ids, np.unique(trace.requests, return_inverse=True)[1], self.experts)
        order = np.random.default_rng(0).permutation(len(self.ids))
        self.few, self.many = order[:SEARCH_TOKENS], order[:POLISH_TOKENS]

    def search(self, stages: list[tuple[np.ndarray, SearchOptions]], seed: int, noise: np.ndarray) -> np.ndarray:
        """Copies `[N, E]` after one search after another, each of (tokens, options)."""
        copies = seed_copies(self.share, self.room)
        for tokens, options in stages:
            copies = search_nodes(self.ids[tokens], self.share, noise, self.room, options, seed, copies)
        return copies

    def traffic(self, copies: np.ndarray) -> float:
        """Copies per token, mean over source nodes."""
        hosts = tuple(tuple(np.flatnonzero(copies[:, e]).tolist()) for e in range(self.experts))
        layer = LayerPlacement(layer_id=0, devices_of_expert=hosts, replica_weights=even_weights(hosts))
        table = joint_choice_table(layer, Topology.regular(len(copies), 1))
        return float(np.bitwise_count(visited_nodes(self.ids[self.many], table, layer_id=0, seed=0)).mean()) - 1

    def objective(self, copies: np.ndarray, options: SearchOptions) -> float:
        """The search's own energy, on all the tokens."""
        return energy(node_state(self.ids[self.many], self.share, self.noise, self.room, options, copies))


def default_against_long(problem: Problem, effort: float, seeds: int) -> tuple[float, float, float, float]:
    """Objective and traffic of a default search, and of the best of long ones."""

    def judged(copies: np.ndarray) -> tuple[float, float]:
        return problem.objective(copies, LONG), problem.traffic(copies)

    default = judged(problem.search([(problem.few, LONG), (problem.many, SHORT)], 0, problem.noise))
    much = replace(LONG, proposals=int(LONG.proposals * effort))
    with ThreadPoolExecutor(2) as pool:
        longest = pool.map(lambda seed: judged(problem.search([(problem.many, much)], seed, problem.noise)), range(1, seeds + 1))
        return (*default, *min(longest))


def default_against_kahypar(problem: Problem) -> tuple[float, float, float, float] | None:
    """Nodes that a token needs, and load of the fullest node over the mean: by a default search, and by Mt-KaHyPar at that imbalance."""
    try:
        import mtkahypar
    except ModuleNotFoundError:
        return None
    certain = np.zeros_like(problem.noise)
    plain = replace(LONG, copy_price=0.0), replace(SHORT, copy_price=0.0)
    copies = problem.search([(problem.few, plain[0]), (problem.many, plain[1])], 0, certain)
    loads = np.bincount(problem.ids[problem.ids >= 0], minlength=problem.experts)

    def judged(node_of_expert: np.ndarray) -> tuple[float, float]:
        ids = problem.ids[problem.many]
        held = (np.where(ids >= 0, node_of_expert[ids], -1)[:, :, None] == np.arange(nodes)).any(axis=1)
        on_node = np.bincount(node_of_expert, weights=loads, minlength=nodes)
        return float(held.sum(axis=1).mean()), float(on_node.max() / on_node.mean())

    nodes = len(copies)
    ours = judged(copies.argmax(axis=0))
    tokens, counts = np.unique(np.sort(problem.ids[problem.many], axis=1), axis=0, return_counts=True)
    start = mtkahypar.initialize(2, False)
    context = start.context_from_preset(mtkahypar.PresetType.QUALITY)
    context.logging = False
    context.set_partitioning_parameters(nodes, max(ours[1] - 1, 1e-3), mtkahypar.Objective.KM1)
    edges = [[e for e in row if e >= 0] for row in tokens.tolist()]
    graph = start.create_hypergraph(context, problem.experts, len(edges), edges, np.maximum(loads, 1).tolist(), counts.tolist())
    found = []
    for seed in range(KAHYPAR_SEEDS):
        mtkahypar.set_seed(seed)
        blocks = graph.partition(context)
        found.append(judged(np.array([blocks.block_id(e) for e in range(problem.experts)])))
    return (*ours, *min(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--topologies", default="2x2,4x4")
    parser.add_argument("--layers", type=int, default=2, help="Layers of each trace, evenly spread.")
    parser.add_argument("--effort", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"# Near the optimum, {date.today().isoformat()}",
        "",
        f"grace-moe {version('grace-moe')}, NumPy {np.__version__}, Python {platform.python_version()}, {platform.machine()}. By",
        "`benchmarks/optimality.py`: default searches (seed 0) against the best",
        f"of {arguments.seeds} searches of {arguments.effort:g} times the moves on all tokens (seeds 1 to {arguments.seeds}),",
        f"and without replicas against the best of {KAHYPAR_SEEDS} runs of Mt-KaHyPar",
        "(preset quality, km1, loads as weights, as uneven as ours are). On planning halves: nothing here is of unseen requests.",
        "Objective: copies per token and the prices of imbalance, 1.25 slots an expert.",
        "",
        "| trace | nodes | layer | objective | long | gap | traffic | long | nodes a token, no replicas | Mt-KaHyPar | gap |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for path in arguments.traces:
        trace, _ = RoutingTrace.load(path).split_requests()
        for shape in arguments.topologies.split(","):
            topology = Topology.parse(shape)
            for layer in np.linspace(0, trace.num_layers - 1, arguments.layers + 2)[1:-1].round().astype(int).tolist():
                began = time.perf_counter()
                slots = PlanningTask(recording=trace, topology=topology).equal_slots
                ours, traffic, best, best_traffic = default_against_long(
                    Problem(trace, layer, topology, slots), arguments.effort, arguments.seeds
                )
                tight = PlanningTask(recording=trace, topology=topology, redundancy=1).equal_slots
                plain = default_against_kahypar(Problem(trace, layer, topology, tight))
                cells = [f"{trace.model}, {trace.dataset}", shape, str(trace.layer_ids[layer]), f"{ours:.4f}", f"{best:.4f}"]
                cells += [f"{ours / best - 1:+.1%}", f"{traffic:.4f}", f"{best_traffic:.4f}"]
                if plain is not None:
                    cells += [f"{plain[0]:.4f} @ {plain[1]:.3f}", f"{plain[2]:.4f} @ {plain[3]:.3f}", f"{plain[0] / plain[2] - 1:+.1%}"]
                lines.append("| " + " | ".join([*cells, *["-"] * (11 - len(cells))]) + " |")
                print(lines[-1], f"<!-- {time.perf_counter() - began:.0f} s -->", flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
