"""Ranks that serve while experts move, for tests: what they decide is written down before, and their link may be faulty."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.runtime.migration.decider import Answer
from grace_moe.runtime.migration.link import Link
from grace_moe.runtime.migration.plan import proposal
from grace_moe.topology import Topology


def random_placement(seed: int, *, shape="2x2", layers=2, experts=16, slots=6) -> Placement:
    """One to three replicas an expert, and on the fullest device exactly `slots`."""
    draw = random.Random(seed)
    topology = Topology.parse(shape)
    devices = range(topology.num_devices)
    made = []
    for layer_id in range(layers):
        held = {d: set(range(d * experts // len(devices), (d + 1) * experts // len(devices))) for d in devices}
        for device in devices:
            others = [e for e in range(experts) if e not in held[device]]
            held[device] |= set(draw.sample(others, slots - len(held[device])))
        rows = tuple(tuple(draw.sample([d for d in devices if e in held[d]], sum(e in held[d] for d in devices))) for e in range(experts))
        names = list(range(experts))
        draw.shuffle(names)
        rows = tuple(rows[names[e]] for e in range(experts))
        made.append(LayerPlacement(layer_id=layer_id, devices_of_expert=rows, replica_weights=even_weights(rows)))
    return Placement(topology=topology, num_experts=experts, layers=tuple(made), replica_choice="joint")


class Scripted:
    """Proposes what it is told to."""

    def __init__(self) -> None:
        self.alive, self.decisions, self.samples = True, 0, []
        self.plan, self.switched = b"", []

    def propose(self, placement: Placement, serving: Placement) -> None:
        self.plan = proposal(placement, serving, reason="the test says so", gain=0.5)

    def take(self, steps):
        self.samples += steps

    def moved(self, layers):
        self.switched += layers

    def answer(self) -> Answer:
        plan, self.plan = self.plan, b""
        self.decisions += bool(plan)
        return Answer(decisions=self.decisions, plan=plan)

    def close(self):
        self.alive = False


@dataclass(frozen=True)
class Fault:
    kind: str
    """`cut`, `stalled`, `corrupted`, or `slow`: each part takes ten times as long as a step, and is late."""
    rank: int
    after: int
    """Parts that it sends before."""


class FaultyLink(Link):
    """Sends as it should, but for one fault at a time."""

    def __init__(self, timeout: timedelta, slow_seconds: float) -> None:
        super().__init__(timeout)
        self.slow_seconds = slow_seconds
        self.fault: Fault | None = None
        self.sent = 0

    def send(self, part: torch.Tensor, to: int) -> dist.Work:
        self.sent += 1
        fault = self.fault
        if fault is None or fault.rank != dist.get_rank() or self.sent <= fault.after:
            return super().send(part, to)
        if fault.kind == "corrupted":
            part = part.clone()
            part[len(part) // 2] ^= 16
        if fault.kind == "slow":
            time.sleep(self.slow_seconds)
        if fault.kind == "stalled":
            return Stuck()
        if fault.kind == "cut":
            raise ConnectionResetError("cut off by the test")
        return super().send(part, to)


class Stuck:
    """A part that never leaves."""

    def wait(self, timeout: timedelta) -> None:
        time.sleep(timeout.total_seconds())
        raise RuntimeError("gloo: timed out")
