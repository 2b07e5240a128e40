"""Step 3: one problem a layer, in canonical names, with what is independent in the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.cost.sent import Sends
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import CAUTION, DEVICE_IMBALANCE_PRICE, PRICE_ROUNDS
from grace_moe.planning.grace.canonical_names import CanonicalNames, in_order, renamed
from grace_moe.planning.grace.independent_units import independent_units
from grace_moe.planning.grace.options import GraceOptions
from grace_moe.planning.grace.search.node_copies import copies_on_nodes
from grace_moe.planning.task import PlanningTask
from grace_moe.topology import Topology
from grace_moe.trace import tokens_of


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """What to plan of one layer, and how hard to try. T tokens, E experts, N nodes."""

    layer_id: int
    ids: npt.NDArray[np.int64]
    """`[T, k]` choices, -1 = none."""
    unit: npt.NDArray[np.int64]
    """`[T]` 0, 1, ...: the request of each token, or what stands for it (`independent_units`)."""
    requests_unknown: bool = False
    """Whether each token is dealt to a device by itself."""
    experts: int
    topology: Topology
    slots: int
    """Of each device, for the searches."""
    slots_of_devices: tuple[int, ...] = ()
    """`[D]` most experts of each device in the end, in a plan for time; empty = `slots` of each."""
    start: npt.NDArray[np.int64] | None = None
    """`[N, E]` copies on each node to begin from; None = from nothing."""
    serving: LayerPlacement | None = None
    """Of which `start` are the copies, where it serves already: few experts should move. None = there is none."""
    node_of_request: npt.NDArray[np.int64] | None = None
    """`[requests]` the node that a front-end sends each request to; None = dealt to the devices in turn."""
    loads_certain: bool = False
    """Whether loads are taken as they are, without doubt: requests will be placed so that they are even (step 4)."""
    sends: Sends = "nodes"
    """What is sent of a token, which is to be spared."""
    replica_choice: str = ""
    """How replicas are chosen: `tar`, or jointly where it is empty."""
    device_price: float = DEVICE_IMBALANCE_PRICE
    """Copies inside a node, per token, that a unit of squared imbalance of its devices is worth."""
    apart: bool = False
    """Whether the search over nodes counts each (token, expert) pair by itself, as if nothing else of the token went along."""
    imbalance_price: float
    """Copies per token that a unit of expected squared imbalance is worth, to begin with."""
    move_price: float = 0.0
    """Copies per token that a copy is worth which a node of `start` does not hold."""
    price_rounds: int = PRICE_ROUNDS
    """Rounds in which prices of nodes are found."""
    first_prices: tuple[float, ...] = ()
    """`[N]` prices of nodes to begin with; empty = none."""
    effort: float
    """Multiplies the moves that searches try."""
    seed: int
    """Of whatever is drawn for this layer."""
    seed_of_days: int
    """Of the bootstrap samples: the same for all layers, so that their sums make sense."""

    @property
    def searchable(self) -> bool:
        """Whether there is anything to choose, and something to choose by."""
        return self.topology.num_devices > 1 and len(self.ids) > 0


def layer_problems(task: PlanningTask, options: GraceOptions, names: Sequence[CanonicalNames]) -> list[LayerProblem]:
    """The problem of every layer.

    Args:
        names: of each layer.
    """
    trace, devices = task.trace, names[0].devices
    topology = in_order(task.topology, devices)
    by_memory: tuple[int, ...] = ()
    if task.setting is None:
        slots = task.equal_slots
    else:
        by_memory = tuple(task.slots_by_memory[device] for device in devices)
        slots = -(-sum(by_memory) // len(by_memory))
        trace = trace.select(np.flatnonzero(tokens_of(trace, task.setting.phase)))
    _, request_of_token = np.unique(trace.requests, return_inverse=True)
    units = request_of_token if options.request_placement else independent_units(trace.topk_ids, request_of_token)
    unknown = units is not request_of_token
    serving = [None if task.start is None else own.canonical(task.start.layers[index]) for index, own in enumerate(names)]
    return [
        LayerProblem(
            layer_id=layer_id,
            ids=renamed(trace.topk_ids[:, index], names[index].experts),
            unit=units,
            requests_unknown=unknown,
            experts=task.num_experts,
            topology=topology,
            slots=slots,
            slots_of_devices=by_memory,
            start=None if (layer := serving[index]) is None else copies_on_nodes(layer, topology, slots),
            serving=serving[index],
            sends=task.sends,
            replica_choice="tar" if task.sends == "pairs" else "",
            apart=task.sends == "pairs",
            imbalance_price=options.price * (CAUTION if unknown else 1),
            move_price=options.move_price,
            effort=options.effort,
            seed=(task.seed * 1_000_003 + index) % 2**32,
            seed_of_days=task.seed,
        )
        for index, layer_id in enumerate(trace.layer_ids)
    ]


def source_chances(problem: LayerProblem) -> npt.NDArray[np.float64]:
    """`[T, N]` chance that each token comes from each node.

    A front-end's node gets all of it. Without one, requests are dealt to the devices in turn.
    """
    if problem.node_of_request is not None:
        return np.eye(problem.topology.num_nodes)[problem.node_of_request[problem.unit]]
    topology, requests = problem.topology, int(problem.unit.max(initial=0)) + 1
    dealt = topology.node_of_device[np.arange(requests) % topology.num_devices]
    if problem.requests_unknown:
        dealt = topology.node_of_device
    shares = np.bincount(dealt, minlength=topology.num_nodes) / len(dealt)
    return np.tile(shares, (len(problem.ids), 1))
