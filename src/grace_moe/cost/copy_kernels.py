"""The loop that counts copies, compiled: of every token, every device that it goes to."""

from __future__ import annotations

from typing import Any

from grace_moe.compiled import kernel, part
from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, SENT, TAKEN


@kernel
def count_copies(devices: Any, source: Any, part_of: Any, links: Any, ports: Any, per_rate: Any) -> None:
    """Add the copies of tokens to `ports` and `per_rate`.

    Args:
        devices: `[T, k]` of each pair, ascending; -1 = none.
        source: `[T]` device of each token.
        part_of: `[T]` part of each token.
        links: `flow_counter.Links`.
        ports: `[parts, kinds, 2, D, tiers]`.
        per_rate: `[parts, kinds, 2, D]`, or nothing.
    """
    for t in range(len(devices)):
        number, own, last, last_node = part_of[t], source[t], -1, -1
        for device in devices[t]:
            if device < 0:
                continue
            _send(PAIRS, number, own, device, links, ports, per_rate)
            if device == last:
                continue
            node = links.node[device]
            peer = own
            if node != links.node[own]:  # the one of the same local rank (`Topology.rail_peer`)
                peer = links.first[node] + (own - links.first[links.node[own]]) % links.sizes[node]
            _send(FLAT, number, own, device, links, ports, per_rate)
            _send(INSIDE_NODES, number, peer, device, links, ports, per_rate)
            if node != last_node:
                _send(BETWEEN_NODES, number, own, peer, links, ports, per_rate)
            last, last_node = device, node


@part
def _send(kind: int, number: int, sender: int, receiver: int, links: Any, ports: Any, per_rate: Any) -> None:
    """Count a copy in a part, unless both are one device."""
    if sender == receiver:
        return
    tier = 0
    while tier < len(links.group) - 1 and (links.group[tier, sender] < 0 or links.group[tier, sender] != links.group[tier, receiver]):
        tier += 1
    ports[number, kind, SENT, sender, tier] += 1
    ports[number, kind, TAKEN, receiver, tier] += 1
    if len(links.bandwidth):
        seconds = 1 / links.bandwidth[sender, receiver]
        per_rate[number, kind, SENT, sender] += seconds
        per_rate[number, kind, TAKEN, receiver] += seconds
