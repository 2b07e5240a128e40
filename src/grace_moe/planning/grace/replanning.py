"""From a placement that serves: which experts few moves would be for, at one price of a move after another.

A price's search goes on from what the dearer one before it found. So the placements of a layer differ step by step, and the first moves are
those that save most. Searching, and placing what was found on devices, are apart: whoever has a budget searches all layers first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice.node_sets import MAX_EXACT_NODES, MAX_MASK_NODES
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.constants import (
    AFTER_DESCENT,
    DECODE_BATCH,
    DECODE_COPIES,
    DECODE_LOAD,
    DESCENT_TOKENS,
    IMBALANCE_PRICE,
    PRICE_ROUNDS_AGAIN,
    STAY_LONGER,
    SWEEPS,
)
from grace_moe.planning.grace.canonical_names import CanonicalNames, canonical_names
from grace_moe.planning.grace.fallbacks import with_choice
from grace_moe.planning.grace.layer_placement import loads_of, node_limits, place_on_devices, reweighed, sample, search_copies
from grace_moe.planning.grace.options import GraceOptions, check_task
from grace_moe.planning.grace.problem import LayerProblem, layer_problems
from grace_moe.planning.grace.schedule import REPLAN
from grace_moe.planning.grace.search.descent import descend
from grace_moe.planning.task import PlanningTask
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

Copies: TypeAlias = npt.NDArray[np.int64]
"""`[N, E]` copies of each expert on each node; both by canonical names."""


@dataclass(frozen=True, kw_only=True)
class LayerReplan:
    """One layer that serves, what it may become, and the tokens to judge by."""

    problem: LayerProblem
    names: CanonicalNames
    share: npt.NDArray[np.float64]
    """`[E]` of the load."""
    covariance: npt.NDArray[np.float64]
    """`[E, E]` of the shares."""
    replica_choice: str
    """Of the placement that serves."""

    @property
    def serving(self) -> Copies:
        """`[N, E]` copies on each node as it serves."""
        assert self.problem.start is not None
        return self.problem.start

    def searched(self, move_price: float, copies: Copies) -> Copies:
        """Copies on each node at this price of a move, from those at a dearer one."""
        problem = replace(self.problem, move_price=move_price)
        if not problem.searchable:
            return copies
        if 1 < problem.topology.num_nodes <= MAX_EXACT_NODES:
            options = replace(REPLAN, imbalance_price=problem.imbalance_price, move_price=move_price, held=self.serving)
            ids = problem.ids[sample(problem, DESCENT_TOKENS // problem.topology.num_nodes)]
            copies = descend(ids, self.share, self.covariance, node_limits(problem), options, copies, sweeps=SWEEPS)
            problem = replace(problem, effort=problem.effort * AFTER_DESCENT)
        return search_copies(problem, 1, copies, self.share, self.covariance)

    def placed(self, move_price: float, copies: Copies) -> LayerPlacement:
        """The copies on devices, by the names of the trace."""
        return self._named(place_on_devices(replace(self.problem, move_price=move_price), copies, self.covariance))

    def reweighed(self) -> LayerPlacement:
        """What serves, with other weights."""
        return self._named(reweighed(self.problem))

    def loads(self, copies: Copies) -> int:
        """Copies that nodes would have to load."""
        return int(np.maximum(copies - self.serving, 0).sum())

    def _named(self, layer: LayerPlacement) -> LayerPlacement:
        return with_choice(self.names.original(layer), self.replica_choice)


def layers_to_replan(trace: RoutingTrace, serving: Placement, *, seed: int, effort: float) -> list[LayerReplan]:
    """Every layer of a placement that serves. Balance is priced and not bounded: a bound would move experts whatever it costs.

    Raises:
        UsageError: an option out of range, or more nodes than the search takes.
        MismatchError: the trace is of another model.
    """
    check_replannable(serving.topology)
    task = PlanningTask(
        recording=trace, topology=serving.topology, seed=seed, slots_per_device=int(serving.slots_per_device().max()), start=serving
    )
    options = GraceOptions(
        price=IMBALANCE_PRICE,
        move_price=0.0,
        tolerance=math.inf,
        request_placement=False,
        decode="tokens",
        decode_copies=DECODE_COPIES,
        decode_load=DECODE_LOAD,
        decode_batch=DECODE_BATCH,
        effort=effort,
        threads=1,
    )
    check_task(task, options)
    names = canonical_names(trace.topk_ids, trace.num_experts, serving.topology)
    found = []
    for own, problem in zip(names, layer_problems(task, options, names), strict=True):
        assert problem.serving is not None
        problem = replace(problem, stay=STAY_LONGER, price_rounds=PRICE_ROUNDS_AGAIN, first_prices=problem.serving.node_prices)
        share, covariance = loads_of(problem)
        found.append(LayerReplan(problem=problem, names=own, share=share, covariance=covariance, replica_choice=serving.replica_choice))
    return found


def check_replannable(topology: Topology) -> None:
    """Whether a search can start from what serves.

    Raises:
        UsageError: more nodes than the search takes.
    """
    if topology.num_nodes > MAX_MASK_NODES:
        raise UsageError(f"{topology.source}: {topology.num_nodes} nodes, and placements are followed on up to {MAX_MASK_NODES}")
