"""What every planning method is given, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.cost.sent import Sends, sends_of
from grace_moe.cost.step import Setting
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.constants import DEFAULT_REDUNDANCY
from grace_moe.planning.option_values import is_within
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, expert_loads

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (layers done, layers in all) as planning goes on."""


Redundancy: TypeAlias = float | Literal["auto"]
"""Slots in all over experts; `auto` = the least that fits, as many slots on every device as hold all experts."""


@dataclass(frozen=True, kw_only=True)
class PlanningTask:
    """One call of `plan`.

    Raises:
        UsageError: on construction, if a limit is out of range or leaves experts without a slot.
    """

    recording: RoutingTrace | LoadProfile
    """What was recorded of the model: tokens, or loads alone."""
    topology: Topology
    seed: int = 0
    """Of whatever a method draws at random; 0 .. 2**32 - 1."""
    redundancy: Redundancy | None = None
    """Slots in all over experts that the user allows; None = the method's own."""
    slots_per_device: int | None = None
    """Most experts a device may hold in a layer; None = no limit."""
    expert_bytes: int | None = None
    """Memory of one expert of one layer; given it, the topology's `memory_bytes` limit the slots."""
    start: Placement | None = None
    """An existing placement that the method may improve on, instead of planning from nothing."""
    backend: str | None = None
    """Of `cost.sent.SENDS`: the plan spares what it sends; None = one copy a node."""
    setting: Setting | None = None
    """How the model is served, over `backend`: the plan is for the time of a layer; None = for copies."""
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.recording.num_layers:
            raise UsageError(f"{self.recording.source}: the trace has no MoE layers; record it again")
        if isinstance(self.recording, RoutingTrace) and not self.recording.num_tokens:
            raise UsageError(f"{self.recording.source}: the trace has no tokens; record some, or select others")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed} is out of range; use 0 to {2**32 - 1}")
        if self.backend is not None:
            sends_of(self.backend)
        self._check_slots()
        self._check_memory()

    def _check_slots(self) -> None:
        experts, devices = self.num_experts, self.num_devices
        if self.redundancy is not None and self.slots_per_device is not None:
            raise UsageError("redundancy and slots_per_device both set the number of slots; give one of them")
        if self.redundancy not in (None, "auto") and not is_within(self.redundancy, 1, devices):
            raise UsageError(
                f"redundancy {self.redundancy} is out of range; use 1 (no replicas) to {devices} (every expert on all {devices} devices), "
                "or auto"
            )
        if self.slots_per_device is not None and self.slots_per_device * devices < experts:
            raise UsageError(
                f"slots_per_device {self.slots_per_device} on {devices} devices leaves some of {experts} experts without a slot; "
                f"use at least {-(-experts // devices)}"
            )

    def _check_memory(self) -> None:
        if self.expert_bytes is not None and self.expert_bytes < 1:
            raise UsageError(f"expert_bytes {self.expert_bytes} is out of range; give the bytes of one expert of one layer")
        if min(self.slot_limits) < 1 or sum(self.slot_limits) < self.num_experts:
            raise UsageError(
                f"{self.topology.source}: memory_bytes: room for {sum(self.slot_limits)} experts a layer (least on a device: "
                f"{min(self.slot_limits)}), {self.num_experts} are needed and one on each device; use more devices or memory"
            )

    @property
    def trace(self) -> RoutingTrace:
        """The recorded tokens. Raises UsageError where there are loads alone."""
        if isinstance(self.recording, LoadProfile):
            raise UsageError(f"{self.recording.source}: counts only, and this needs a trace of tokens")
        return self.recording

    @property
    def num_experts(self) -> int:
        """Experts of each layer."""
        return self.recording.num_experts

    @property
    def num_devices(self) -> int:
        """Devices of the topology."""
        return self.topology.num_devices

    @property
    def sends(self) -> Sends:
        """What is sent of a token, which the plan spares."""
        return "nodes" if self.backend is None else sends_of(self.backend)

    @property
    def slot_limits(self) -> tuple[int, ...]:
        """`[devices]` most experts that each device may hold in a layer."""
        limit = self.num_experts if self.slots_per_device is None else min(self.slots_per_device, self.num_experts)
        if self.expert_bytes is None:
            return (limit,) * self.num_devices
        stack = self.expert_bytes * self.recording.num_layers  # a slot in every layer
        memory = (device.memory_bytes for node in self.topology.nodes for device in node.devices)
        return tuple(limit if m is None else min(limit, m // stack) for m in memory)

    @property
    def equal_slots(self) -> int:
        """Slots of each device for methods that fill all devices alike: the limit, else the redundancy rounded up to whole slots.

        Raises:
            UsageError: the device with the least memory is too small for an equal share of the experts.
        """
        most = min(self.slot_limits)
        if most * self.num_devices < self.num_experts:
            raise UsageError(
                f"{self.topology.source}: memory_bytes: the smallest device has room for {most} experts a layer, and equal slots "
                f"need {-(-self.num_experts // self.num_devices)}; use method grace_paper, or more memory there"
            )
        return min(most, self._share)

    @property
    def slots_by_memory(self) -> tuple[int, ...]:
        """`[devices]` slots of each device where they follow memory: what small devices lack of equal slots, larger ones get."""
        limits, level = self.slot_limits, self._share
        wanted = min(level * self.num_devices, sum(limits))
        while sum(slots := tuple(min(limit, level) for limit in limits)) < wanted:
            level += 1
        return slots

    @property
    def _share(self) -> int:
        """Slots of each device before memory limits them: those asked for, else the redundancy rounded up to whole slots."""
        if self.slots_per_device is not None:
            return min(self.slots_per_device, self.num_experts)
        return math.ceil(self.redundancy_allowed * self.num_experts / self.num_devices - 1e-9)

    @property
    def redundancy_allowed(self) -> float:
        """Slots in all over experts, before they are rounded to whole slots of equal devices."""
        if self.redundancy is None:
            return DEFAULT_REDUNDANCY
        return 1.0 if self.redundancy == "auto" else self.redundancy

    def layers(self) -> Iterator[tuple[int, npt.NDArray[np.integer[Any]]]]:
        """(layer id, `[tokens, k]` choices) of each layer; reports progress as each is done."""
        trace = self.trace
        for index, layer_id in enumerate(trace.layer_ids):
            yield layer_id, trace.topk_ids[:, index]
            if self.progress is not None:
                self.progress(index + 1, trace.num_layers)

    def loads(self) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """(layer id, `[experts]` loads) of each layer, for methods that go by load alone; reports progress as each is done."""
        recording = self.recording
        for index, (layer_id, loads) in enumerate(zip(recording.layer_ids, expert_loads(recording), strict=True)):
            yield layer_id, loads
            if self.progress is not None:
                self.progress(index + 1, recording.num_layers)


@dataclass(frozen=True, kw_only=True)
class PlannedLayers:
    """What a method decided."""

    layers: tuple[LayerPlacement, ...]
    replica_choice: str = "wrr"
    """One of `placement.REPLICA_CHOICES`."""
    notes: tuple[str, ...] = ()
    """What the user should know: limits that bit, options that had no effect."""
