"""Step 1: the options of `grace`, checked by themselves and against what is to be planned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grace_moe.choice.node_sets import MAX_MASK_NODES
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement, check_same_model
from grace_moe.planning.constants import MAX_DECODE_BATCH
from grace_moe.planning.option_values import check_choice, is_within
from grace_moe.planning.task import PlanningTask
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile

DECODE_CHOICES = ("tokens", "experts")
"""What the replica choice of decode goes by: prefill's tables, or few active experts on a device."""


@dataclass(frozen=True, kw_only=True)
class GraceOptions:
    """The keyword arguments of `grace`, which describes them.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    price: float
    move_price: float
    tolerance: float
    request_placement: bool
    decode: str
    decode_copies: float
    decode_load: float
    decode_batch: int
    effort: float
    threads: int

    def __post_init__(self) -> None:
        check_choice("decode", self.decode, DECODE_CHOICES)
        if not is_within(self.decode_copies, 0, 1e6) or not is_within(self.decode_load, 0, 1e6):
            raise UsageError(f"decode_copies {self.decode_copies!r}, decode_load {self.decode_load!r}: use shares from 0 to 1e6")
        if type(self.decode_batch) is not int or not 1 <= self.decode_batch <= MAX_DECODE_BATCH:
            raise UsageError(f"decode_batch {self.decode_batch!r} is out of range; use 1 to {MAX_DECODE_BATCH} tokens")
        if not is_within(self.effort, 1e-6, 1000) or type(self.threads) is not int or self.threads < 1:
            raise UsageError(
                f"effort {self.effort!r}, threads {self.threads!r}: use an effort above 0, up to 1000, and at least one thread"
            )
        if not is_within(self.move_price, 0, 1e6):
            raise UsageError(f"move_price {self.move_price!r} is out of range; use copies per token, from 0 to 1e6")
        if not is_within(self.price, 0, 1e6) or not is_within(self.tolerance, 1, np.inf):
            raise UsageError(f"price {self.price!r}, tolerance {self.tolerance!r}: use a price from 0 to 1e6 and a tolerance of 1 or more")
        if type(self.request_placement) is not bool:
            raise UsageError(f"request_placement {self.request_placement!r} is neither true nor false; use one of them")


def check_task(task: PlanningTask, options: GraceOptions) -> None:
    """Whether these options can be had for this trace, topology and start.

    Raises:
        UsageError: they ask for more than the trace tells, or than the search takes.
        MismatchError: the placement to start from is of another model, topology or number of slots.
    """
    recording, topology = task.recording, task.topology
    if options.decode == "experts" and isinstance(recording, LoadProfile):
        raise UsageError(f"{recording.source}: counts only, and decode experts needs a trace of tokens; plan with decode tokens")
    if options.request_placement or task.start is not None:
        if topology.num_nodes > MAX_MASK_NODES:
            raise UsageError(
                f"request_placement and start take up to {MAX_MASK_NODES} nodes, and {topology.source} has {topology.num_nodes}; "
                "plan without them"
            )
        if isinstance(recording, LoadProfile):
            raise UsageError(f"{recording.source}: counts only, and request_placement and start need a trace of tokens; plan without them")
    if options.request_placement:
        if task.sends == "everything":
            raise UsageError(f"request_placement saves nothing with {task.backend}, which sends every token everywhere; plan without it")
        _check_request_placement(task)
    if task.start is not None:
        _check_start(task, task.start)
    elif options.move_price:
        raise UsageError("move_price is for what moves away from a placement that serves; give start too, or leave it out")


def _check_request_placement(task: PlanningTask) -> None:
    if task.trace.request_ids is None:
        raise UsageError(
            f"{task.trace.source}: request_ids: none, so that requests can't be placed; record them, or plan without request_placement"
        )
    if len({tuple(device.relative_speed for device in node.devices) for node in task.topology.nodes}) > 1:
        raise UsageError(f"request_placement needs nodes that are alike, and those of {task.topology.source} are not; plan without it")


def _check_start(task: PlanningTask, start: Placement) -> None:
    check_same_model(start, task.trace)
    if start.topology.shape != task.topology.shape:
        raise MismatchError(
            f"{start.source}: topology: {start.topology.shape}, but the plan is for {task.topology.shape}; "
            "start from a placement on this topology, or from none"
        )
    if int(start.slots_per_device().max()) > task.equal_slots:
        raise MismatchError(
            f"{start.source}: {int(start.slots_per_device().max())} slots on a device, but the plan allows {task.equal_slots}; "
            "give more slots, or plan from none"
        )


def check_replannable(topology: Topology) -> None:
    """Whether a search can start from what serves.

    Raises:
        UsageError: more nodes than the search takes.
    """
    if topology.num_nodes > MAX_MASK_NODES:
        raise UsageError(f"{topology.source}: {topology.num_nodes} nodes, and placements are followed on up to {MAX_MASK_NODES}")
