"""MoETuner: balanced clusters of experts in each layer, then clusters to devices by what flows between layers.

Source: arXiv 2502.06643, rebuilt from summaries; its solver (Gurobi) is replaced. Where we differ, or had to choose:

- ILP 1 as printed keeps only "at least one expert a cluster": balance alone would then pack many light experts beside one
  heavy. Clusters here are of equal size (by one more or less where devices don't divide the experts).
- ILP 2 is solved layer by layer, the first layer as it comes: with the former layer fixed, each further one is an exact
  linear assignment. The paper solves all layers at once, and minimises the largest flow over a link (`flow="max"`: then
  a bottleneck assignment, ties by the sum); `flow="sum"` minimises all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp

from grace_moe.errors import UsageError
from grace_moe.planning.groups.affinity import layer_loads
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.planning.groups.even_layers import layer_of_devices
from grace_moe.planning.groups.transitions import hop_costs, link_costs, transitions
from grace_moe.planning.notes import by_layer, no_replicas
from grace_moe.planning.option_values import check_choice, is_within
from grace_moe.planning.task import PlannedLayers, PlanningTask

FLOWS = ("sum", "max")
LINKS = ("hops", "bandwidth")
SOLVERS = ("auto", "ilp", "greedy")
TOLERANCE = 0.025
"""The paper's."""
MAX_BINARIES = 1024
"""Experts times devices up to which ILP 1 is tried: 64 x 16 takes seconds a layer."""
NODE_LIMIT = 20
"""Nodes of the solver's search tree: a limit in seconds would give another plan on another day."""
TOO_BIG = f"the balance ILP has over {MAX_BINARIES} binaries: clusters are greedy"
UNSOLVED = f"the balance ILP found nothing as good in {NODE_LIMIT} nodes: clusters are greedy"

Ints = npt.NDArray[np.int64]


def greedy_clusters(loads: Ints, sizes: list[int]) -> Ints:
    """`[experts]` cluster of each: heaviest first to the lightest with room, then swaps while they lower sum |T_c - mean|.

    Of equal swaps, the one that flattens most; then the lower numbers.

    Args:
        loads: `[experts]`.
        sizes: `[clusters]` experts of each; they sum to the number of experts.
    """
    num_clusters = len(sizes)
    cluster = np.empty(len(loads), dtype=np.int64)
    room, carried = list(sizes), np.zeros(num_clusters, dtype=np.int64)
    for expert in np.argsort(-loads, kind="stable"):
        c = min((c for c in range(num_clusters) if room[c]), key=lambda c: (int(carried[c]), c))
        cluster[expert] = c
        room[c] -= 1
        carried[c] += loads[expert]
    scaled = loads * num_clusters  # whole numbers, so that gains are exact
    over = carried * num_clusters - loads.sum()
    while True:
        moved = scaled[:, None] - scaled  # from i's cluster to j's
        here, there = over[cluster][:, None], over[cluster][None, :]
        flatter = here**2 + there**2 - (here - moved) ** 2 - (there + moved) ** 2
        nearer = abs(here) + abs(there) - abs(here - moved) - abs(there + moved)
        apart = cluster[:, None] != cluster
        nearer = np.where(apart & ((nearer > 0) | ((nearer == 0) & (flatter > 0))), nearer, -1)
        if nearer.max(initial=-1) < 0:
            return cluster
        i, j = np.unravel_index(int(np.where(nearer == nearer.max(), flatter, np.iinfo(np.int64).min).argmax()), nearer.shape)
        over[cluster[i]] -= moved[i, j]
        over[cluster[j]] += moved[i, j]
        cluster[i], cluster[j] = cluster[j], cluster[i]


def ilp_clusters(loads: Ints, sizes: list[int], tolerance: float) -> Ints | None:
    """ILP 1: `[experts]` cluster of each, of least sum |T_c - mean|; None where the search found nothing in `NODE_LIMIT` nodes.

    Args:
        loads: `[experts]`, not all 0.
        sizes: `[clusters]` experts of each.
        tolerance: how far from the optimum the search may end, over the load in all.
    """
    experts, clusters = len(loads), len(sizes)
    binaries = experts * clusters  # x[e, c] at e * clusters + c; then d[c] >= |T_c - mean| / mean; then a constant
    one_each = sparse.kron(sparse.eye_array(experts), np.ones((1, clusters)))
    per_cluster = sparse.eye_array(clusters)
    load = sparse.kron(loads[None, :] * (clusters / loads.sum()), per_cluster)
    rows: Any = sparse.block_array(
        [
            [one_each, None, None],
            [sparse.kron(np.ones((1, experts)), per_cluster), None, None],
            [load, -per_cluster, None],
            [load, per_cluster, sparse.csr_array((clusters, 1))],
        ],
        format="csr",
    )
    low = np.concatenate([np.ones(experts), sizes, np.full(clusters, -np.inf), np.ones(clusters)])
    high = np.concatenate([np.ones(experts), sizes, np.ones(clusters), np.full(clusters, np.inf)])
    most = np.concatenate([np.ones(binaries), np.full(clusters, np.inf), [1.0]])
    # The constant makes the solver's relative gap one over the load in all: over the deviation alone, whose bound is 0, it means nothing.
    least = np.concatenate([np.zeros(binaries + clusters), [1.0]])
    found = milp(
        np.concatenate([np.zeros(binaries), np.ones(clusters), [float(clusters)]]),
        integrality=np.concatenate([np.ones(binaries), np.zeros(clusters + 1)]),
        bounds=Bounds(least, most),
        constraints=LinearConstraint(rows, low, high),
        options={"node_limit": NODE_LIMIT, "mip_rel_gap": tolerance},
    )
    if found.x is None:
        return None
    cluster = np.asarray(found.x[:binaries].reshape(experts, clusters).argmax(axis=1), dtype=np.int64)
    # The solver's numbers are whole within a tolerance of its own; what doesn't round to clusters of these sizes is no answer.
    return cluster if np.bincount(cluster, minlength=clusters).tolist() == sizes else None


def deviation(loads: Ints, cluster: Ints, num_clusters: int) -> float:
    """ILP 1's objective over the load in all: sum |T_c - mean| / sum T_c; 0 without load."""
    carried = np.bincount(cluster, weights=loads, minlength=num_clusters)
    return float(abs(carried - carried.mean()).sum() / max(1.0, carried.sum()))


def balanced_clusters(loads: Ints, num_clusters: int, *, solver: str, tolerance: float) -> tuple[Ints, tuple[str, ...]]:
    """`[experts]` cluster of each, and notes. The better of greedy and ILP.

    `auto` asks the ILP only where the greedy deviates by more than the tolerance: no deviation is below 0, so the ILP's own
    search might have ended there too.
    """
    sizes = even_sizes(len(loads), num_clusters)
    greedy = greedy_clusters(loads, sizes)
    reached = deviation(loads, greedy, num_clusters)
    if solver == "greedy" or reached == 0 or (solver == "auto" and reached <= tolerance):
        return greedy, ()
    if len(loads) * num_clusters > MAX_BINARIES:
        return greedy, (TOO_BIG,)
    solved = ilp_clusters(loads, sizes, tolerance)
    if solved is None or deviation(loads, solved, num_clusters) > reached:
        return greedy, (UNSOLVED,)
    return solved, ()


def assign_clusters(costs: npt.NDArray[np.float64], *, flow: str = "sum") -> Ints:
    """`[clusters]` device of each: the assignment of least cost, exact.

    Args:
        costs: `[clusters, devices, links]` what each of the cluster's links would carry, were it on the device.
        flow: `sum` = least cost in all; `max` = least cost of the busiest link, of those the least in all.
    """
    total = costs.sum(axis=2)
    if flow == "max":
        busiest = costs.max(axis=2, initial=0.0)
        bounds = np.unique(busiest)
        low, high = 0, len(bounds) - 1
        while low < high:  # the lowest bound under which every cluster finds a device
            middle = (low + high) // 2
            above = (busiest > bounds[middle]).astype(np.float64)
            if above[linear_sum_assignment(above)].sum() == 0:
                high = middle
            else:
                low = middle + 1
        total = np.where(busiest > bounds[low], total.sum() + 1, total)  # dearer than all the others together
    return np.asarray(linear_sum_assignment(total)[1], dtype=np.int64)


def moetuner(
    task: PlanningTask, *, flow: str = "sum", links: str = "hops", solver: str = "auto", tolerance: float = TOLERANCE
) -> PlannedLayers:
    """MoETuner's placement. `redundancy` has no effect: it makes no replicas.

    Args:
        flow: `sum` of the flow between neighbouring layers, or `max` over its links (the paper's).
        links: `hops` (0 the same device, 1 the same node, 2 another) or `bandwidth` (seconds by the topology's links).
        solver: `ilp` (HiGHS), `greedy`, or `auto`: greedy where that is within the tolerance already.
        tolerance: of ILP 1, over the load in all, 0 to 1.

    Raises:
        UsageError: an option out of range.
    """
    check_choice("flow", flow, FLOWS)
    check_choice("links", links, LINKS)
    check_choice("solver", solver, SOLVERS)
    if not is_within(tolerance, 0, 1):
        raise UsageError(f"tolerance {tolerance!r} is out of range; use 0 (the optimum) to 1")
    costs = hop_costs(task.topology) if links == "hops" else link_costs(task.topology)
    layers, notes = [], []
    former: tuple[npt.NDArray[np.integer[Any]], Ints] | None = None
    for layer_id, ids in task.layers():
        cluster, said = balanced_clusters(layer_loads(ids, task.num_experts), task.num_devices, solver=solver, tolerance=tolerance)
        if former is None:
            device = cluster
        else:
            into = np.zeros((task.num_devices, task.num_devices))  # former device -> cluster
            np.add.at(into, (former[1][:, None], cluster[None, :]), transitions(former[0], ids, task.num_experts))
            device = assign_clusters(into.T[:, None, :] * costs.T[None, :, :], flow=flow)[cluster]
        layers.append(layer_of_devices(layer_id, [(d,) for d in device]))
        notes.append((layer_id, said))
        former = ids, device
    return PlannedLayers(layers=tuple(layers), notes=no_replicas(task, "moetuner") + by_layer(notes))
