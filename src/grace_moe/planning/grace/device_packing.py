"""Step 9: each node's experts on its devices, by what the node will compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement, held_by_devices
from grace_moe.planning.constants import PACKING_TOKENS
from grace_moe.planning.grace.predicted_choice import chosen_devices, pairs_apart
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.replica_shares import Hosts
from grace_moe.planning.grace.schedule import PACK, REPACK
from grace_moe.planning.grace.search.devices import NodeShare, pack_devices
from grace_moe.topology import Topology


def pack_nodes(
    problem: LayerProblem,
    ids: npt.NDArray[np.int64],
    sources: npt.NDArray[np.float64],
    copies: npt.NDArray[np.int64],
    on_nodes: LayerPlacement,
    covariance: npt.NDArray[np.float64],
) -> Hosts:
    """Per expert, the devices that hold it; one that a device would hold twice is there once.

    Args:
        ids: `[T, k]` of a sample of tokens, -1 = none.
        sources: `[T, N]` chance that each of them comes from each node.
        copies: `[N, E]`.
        on_nodes: the layer on nodes instead of devices (step 8).
        covariance: `[E, E]` of the experts' shares of the load.
    """
    topology, devices = problem.topology, problem.topology.num_devices
    rows, computed_on = _sample_computed(problem, ids, sources, on_nodes)
    held = None if problem.serving is None else held_by_devices(problem.serving, devices)
    hosts: list[list[int]] = [[] for _ in range(problem.experts)]
    for node in range(topology.num_nodes):
        share = _share_of_node(problem, node, rows, computed_on, copies[node], held)
        options = replace(PACK if held is None else REPACK, imbalance_price=problem.device_price)
        if held is not None:
            options = replace(options, stay=options.stay + problem.device_price * problem.move_price)
        slots = pack_devices(share, problem.slots, covariance * devices**2, options, problem.seed)
        for row, here in zip(hosts, hosts_of_slots(slots, topology.devices_of_node(node), problem.experts), strict=True):
            row.extend(here)
    return tuple(tuple(row) for row in hosts)


def refill_nodes(problem: LayerProblem, copies: npt.NDArray[np.int64], load: npt.NDArray[np.float64]) -> Hosts:
    """Per expert, the devices that hold it, where a placement serves: what stays on a node stays on its device, what comes fills the gaps.

    Args:
        copies: `[N, E]`.
        load: `[N, E]` pairs that each node computes.
    """
    assert problem.serving is not None
    topology = problem.topology
    held = held_by_devices(problem.serving, topology.num_devices)
    slots = []
    for node in range(topology.num_nodes):
        members = list(topology.devices_of_node(node))
        share = NodeShare(
            copies=copies[node],
            load=load[node],
            share_here=np.ones(problem.experts),
            rows=np.full((0, 1), -1),  # nothing is swapped afterwards
            fair=topology.relative_speed[members],
            held=held[members],
        )
        slots.append(pack_devices(share, problem.slots, np.zeros((0, 0)), REPACK, problem.seed))
    return hosts_of_slots(np.concatenate(slots), range(topology.num_devices), problem.experts)


def hosts_of_slots(slots: npt.NDArray[np.int64], devices: Sequence[int], experts: int) -> Hosts:
    """Per expert, the devices that hold it.

    Args:
        slots: `[G, S]` expert in each slot, -1 = none.
        devices: `[G]` their numbers.
    """
    device, slot = np.nonzero(slots >= 0)
    held = np.unique(np.stack([slots[device, slot], np.asarray(devices)[device]]), axis=1)
    rows = np.split(held[1], np.cumsum(np.bincount(held[0], minlength=experts))[:-1])
    return tuple(tuple(row.tolist()) for row in rows)


def _share_of_node(
    problem: LayerProblem,
    node: int,
    rows: npt.NDArray[np.int64],
    computed_on: npt.NDArray[np.int64],
    copies: npt.NDArray[np.int64],
    held: npt.NDArray[np.bool_] | None,
) -> NodeShare:
    """What one node has to place.

    Args:
        rows, computed_on: from `_sample_computed`.
        copies: `[E]` on the node.
        held: `[D, E]` which device holds which expert already; None = nothing does.
    """
    members, speed = list(problem.topology.devices_of_node(node)), problem.topology.relative_speed
    here = np.where(computed_on == node, rows, -1)
    here = here[(here >= 0).any(axis=1)]
    load = np.bincount(here[here >= 0], minlength=problem.experts).astype(float)
    pairs = max(int((computed_on >= 0).sum()), 1)
    if problem.sends == "pairs":
        _, here = pairs_apart(here)
    return NodeShare(
        copies=copies,
        load=load,
        share_here=load / np.maximum(np.bincount(rows[rows >= 0], minlength=problem.experts), 1),
        rows=here,
        fair=pairs * speed[members] / speed.sum(),
        held=None if held is None else held[members],
    )


def _sample_computed(
    problem: LayerProblem, ids: npt.NDArray[np.int64], sources: npt.NDArray[np.float64], on_nodes: LayerPlacement
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`[T, k]` choices, and the node that computes each of them: every token from one source, drawn by its chances."""
    tokens = PACKING_TOKENS if problem.serving is None else PACKING_TOKENS // 2
    sample = np.arange(tokens) % max(1, len(ids))
    drawn = np.random.default_rng(problem.seed).random(tokens)
    source = (sources.cumsum(axis=1)[sample, :-1] <= drawn[:, None]).sum(axis=1)
    one_device_a_node = Topology.regular(problem.topology.num_nodes, 1)
    return ids[sample], chosen_devices(on_nodes, one_device_a_node, ids[sample], source, problem.seed)
