"""The exchanges that level a layer, compiled: weights set anew, and the exchange that is worth most for its moves.

`load` is `[E]` shares of the load, `holds` and `parts` are `[E, D]` (which device holds which expert, and its part of the load), `even` is
`[D]` shares of the devices by speed, `price` is `[E, D]` of the move of an expert to a device. Arrays are changed in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grace_moe.compiled import kernel, part

SWEEPS = 40
"""Most rounds over the replicated experts in which weights are set anew. Not tuned."""
STILL = 1e-4
"""Load over the mean: where no weight moves more, weights are as even as they get. Not tuned."""
WORTH = 1e-6
"""Least worth of an exchange, so that none is undone by another. Not tuned."""
LEAST_PAID = 0.01
"""Price of an exchange that costs nothing, as its copies go back to where they were at first. Not tuned."""

BETTER = 1 + 1e-9
"""How much more the better of two exchanges is worth: rounding chooses none of two that are alike. Not tuned."""


@kernel
def share_out(load: Any, holds: Any, parts: Any, even: Any) -> Any:
    """Set the parts of replicated experts so that devices are as even as may be: one expert after another, until nothing changes.

    The sum of squares of the devices' loads falls at each step, and at its least point the busiest device is at its least as well.
    """
    experts, devices = holds.shape
    relative = parts.sum(axis=0) / even
    held = np.zeros(devices, np.int64)
    for _ in range(SWEEPS):
        largest = 0.0
        for expert in range(experts):
            count = 0
            for device in range(devices):
                if holds[expert, device]:
                    held[count] = device
                    count += 1
            if count < 2:
                continue
            for index in range(count):
                relative[held[index]] -= parts[expert, held[index]] / even[held[index]]
            for index in range(1, count):  # the least loaded first
                device, place = held[index], index
                while place > 0 and relative[held[place - 1]] > relative[device]:
                    held[place] = held[place - 1]
                    place -= 1
                held[place] = device
            level, weight, carried = 0.0, 0.0, load[expert]
            for index in range(count):
                if index > 0 and relative[held[index]] >= level:
                    break
                weight += even[held[index]]
                carried += relative[held[index]] * even[held[index]]
                level = carried / weight
            for index in range(count):
                device = held[index]
                given = max(0.0, level - relative[device]) * even[device]
                largest = max(largest, abs(given - parts[expert, device]) / even[device])
                parts[expert, device] = given
                relative[device] += given / even[device]
        if largest < STILL:
            break
    return 0


@part
def _fourth(value: Any) -> Any:
    """Its fourth power."""
    return value * value * value * value


@part
def _third(value: Any) -> Any:
    """Its third power."""
    return value * value * value


@part
def _best_swap(layer: Any, even: Any, price: Any, relative: Any, best: Any) -> Any:
    """The swap of two experts of two devices that is worth most, where it is worth more than `best` has: rate, experts, devices."""
    holds, parts, _, _, on, size = layer
    for busy in range(len(even)):
        if relative[busy] <= 1:
            continue
        for idle in range(len(even)):
            if relative[busy] <= relative[idle]:
                continue
            before = _fourth(relative[busy]) + _fourth(relative[idle])
            slope = 4 * (_third(relative[busy]) / even[busy] - _third(relative[idle]) / even[idle])
            least_paid = 0.0
            for back in on[idle, : size[idle]]:
                least_paid = min(least_paid, price[back, busy] - price[back, idle])
            for out in on[busy, : size[busy]]:
                part_out, paid_out = parts[out, busy], price[out, idle] - price[out, busy]
                # What is left is worth less and less: no more than at first.
                if part_out * slope <= best[0] * max(paid_out + least_paid, LEAST_PAID) or holds[out, idle]:
                    continue
                for back in on[idle, : size[idle]]:
                    given = part_out - parts[back, idle]
                    if given <= 0 or holds[back, busy]:
                        continue
                    after = _fourth(relative[busy] - given / even[busy]) + _fourth(relative[idle] + given / even[idle])
                    paid = max(paid_out + price[back, busy] - price[back, idle], LEAST_PAID)
                    if before - after > best[0] * paid * BETTER:
                        best[0], best[1], best[2], best[3], best[4] = (before - after) / paid, out, busy, back, idle
    return 0


@part
def _relief(load: Any, layer: Any, even: Any, relative: Any, relief: Any) -> Any:
    """What a further replica of each expert takes from the devices that hold it now; below 0 where none of them has more than the mean."""
    _, parts, of, count, _, _ = layer
    for expert in range(len(load)):
        relief[expert], found = 0.0, False
        for device in of[expert, : count[expert]]:
            found |= relative[device] > 1
            less = relative[device] - parts[expert, device] / (count[expert] + 1) / even[device]
            relief[expert] += _fourth(relative[device]) - _fourth(less)
        if not found:
            relief[expert] = -1.0
    return 0


@part
def _best_replica(load: Any, layer: Any, even: Any, price: Any, loads: Any, best: Any) -> Any:
    """The replica that had best give its slot to one of another expert, where that is worth more than `best` has.

    The others of the one that goes take over evenly; those of the one that comes give it an equal part each.
    """
    holds, parts, of, count, _, _ = layer
    relative, relief = loads
    _relief(load, layer, even, relative, relief)
    for out in range(len(load)):
        if count[out] < 2:
            continue
        for place in of[out, : count[out]]:
            without, more = relative[place] - parts[out, place] / even[place], parts[out, place] / (count[out] - 1)
            lost = _fourth(without) - _fourth(relative[place])
            for device in of[out, : count[out]]:
                if device != place:
                    lost += _fourth(relative[device] + more / even[device]) - _fourth(relative[device])
            for into in range(len(load)):
                if relief[into] < 0 or holds[into, place]:
                    continue
                gained = relief[into] + _fourth(without) - _fourth(without + load[into] / (count[into] + 1) / even[place])
                for device in of[out, : count[out]]:  # what takes over from the one is relieved of the other
                    if holds[into, device]:
                        then, less = relative[device] + more / even[device], parts[into, device] / (count[into] + 1) / even[device]
                        gained += _fourth(then) - _fourth(then - less) - _fourth(relative[device]) + _fourth(relative[device] - less)
                paid = max(price[into, place] - price[out, place], LEAST_PAID)
                if gained - lost > best[0] * paid * BETTER:
                    best[0], best[1], best[2], best[3], best[4] = (gained - lost) / paid, out, place, into, -1
    return 0


@kernel
def exchange(load: Any, holds: Any, parts: Any, even: Any, price: Any) -> Any:
    """Carry out the exchange that is worth most for its moves; whether there was one."""
    experts, devices = holds.shape
    count, size = holds.sum(axis=1), holds.sum(axis=0)
    of, on = np.empty((experts, count.max()), np.int64), np.empty((devices, size.max()), np.int64)
    count[:], size[:] = 0, 0
    for expert in range(experts):
        for device in range(devices):
            if holds[expert, device]:
                of[expert, count[expert]], on[device, size[device]] = device, expert
                count[expert] += 1
                size[device] += 1
    relative = parts.sum(axis=0) / even
    best = np.array([WORTH, -1.0, -1.0, -1.0, -1.0])
    layer = (holds, parts, of, count, on, size)
    _best_swap(layer, even, price, relative, best)
    _best_replica(load, layer, even, price, (relative, np.empty(experts)), best)
    out, place, other, idle = int(best[1]), int(best[2]), int(best[3]), int(best[4])
    if out < 0:
        return False
    if idle >= 0:
        for expert, old, new in ((out, place, idle), (other, idle, place)):
            holds[expert, old], holds[expert, new] = False, True
            parts[expert, new], parts[expert, old] = parts[expert, old], 0.0
        return True
    holds[out, place], holds[other, place] = False, True
    gone, others = parts[out, place], count[out] - 1
    parts[out, place] = 0.0
    for device in range(devices):
        if holds[out, device]:
            parts[out, device] += gone / others
    return True
