"""Tiers of links besides those inside nodes and between them: how the topology file has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grace_moe.errors import TopologyError
from grace_moe.topology.parts import Tier
from grace_moe.topology.values import MEND, link_of, link_value, mapping, sequence, whole_of

_GROUPING = ("groups", "devices_per_group")


def tiers_of(source: str, links: dict[str, Any], others: Sequence[str], num_devices: int) -> tuple[Tier, ...]:
    """The links of a topology file that are neither of `others`, each with its groups of devices, by name.

    Raises:
        TopologyError: one has no groups, or a device that is not there or is in two of them.
    """
    return tuple(_tier(source, name, link, others, num_devices) for name, link in sorted(links.items()) if name not in others)


def tiers_value(tiers: Sequence[Tier]) -> dict[str, Any]:
    """The JSON values of tiers, by their names."""
    return {tier.name: link_value(tier.link) | {"groups": [list(group) for group in tier.groups]} for tier in tiers}


def _tier(source: str, name: str, value: Any, others: Sequence[str], num_devices: int) -> Tier:
    field = f"links.{name}"
    if not any(key in mapping(source, field, value) for key in _GROUPING):
        mend = f"name {' and '.join(others)}, or give it groups of devices"
        raise TopologyError(source, field, "unknown link", mend)
    link = link_of(source, field, value, _GROUPING)
    if "groups" in value:
        rows = enumerate(sequence(source, f"{field}.groups", value["groups"]))
        groups = tuple(_group(source, f"{field}.groups[{g}]", group) for g, group in rows)
    else:
        size = whole_of(source, f"{field}.devices_per_group", value["devices_per_group"])
        if size < 1:
            raise TopologyError(source, f"{field}.devices_per_group", f"{size} is under 1", MEND)
        groups = tuple(tuple(range(start, min(start + size, num_devices))) for start in range(0, num_devices, size))
    members = [device for group in groups for device in group]
    if len(set(members)) < len(members) or not all(0 <= device < num_devices for device in members):
        raise TopologyError(source, field, "a device is in two groups, or there is none of that number", "name each device once, from 0 on")
    return Tier(name=name, link=link, groups=groups)


def _group(source: str, field: str, value: Any) -> tuple[int, ...]:
    return tuple(whole_of(source, f"{field}[{i}]", device) for i, device in enumerate(sequence(source, field, value)))
